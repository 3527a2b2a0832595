"""One working call of each public function, constructor and method, as a table.

A row has the callable, its arguments, and the arguments that may have other columns or dimensions.
"""

from itertools import islice
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

from ctdl_lib import control, dynamics, generative, learning, metrics, networks, potentials
from ctdl_lib.learning import storage
from ctdl_lib.networks import architectures, embeddings
from ctdl_lib.problems import classification, datasets, densities, symbolic, vehicles
from ctdl_lib.problems import control as problems
from ctdl_lib.references import advection, finite_differences, grids, transcription

before = torch.get_default_dtype()
torch.set_default_dtype(torch.float64)  # of the arguments below
torch.manual_seed(0)
N, D = 6, 2
x, z, t = torch.randn(N, D), torch.randn(N, D), torch.rand(N)
c = torch.randn(N, 3)
label = torch.tensor([0, 1, 0, 1, 1, 0])
u = torch.randn(N, 8, 8)


def gen():
    return torch.Generator().manual_seed(0)


def still(t, x):
    return -x


def mean(x):
    return x.square().sum(-1)


def consumed(function):
    """The function with the first three values of its generator; its arguments are the same."""

    def call(*args, **kwargs):
        return list(islice(function(*args, **kwargs), 3))

    call.__wrapped__ = function
    return call


phi = potentials.ResNetPotential(D, width=4)
own = potentials.ResNetPotential(D, width=4)
lq = problems.LinearQuadratic(torch.zeros(D), 1.0, diffusion=0.3)
quiet = problems.LinearQuadratic(torch.zeros(D), 1.0)
mlp, squash = networks.MLP(D, width=4), networks.ConcatSquash(D, width=4)
mlp_y = networks.MLP(D, width=4, context_dim=3)
net = networks.ResNet(D, 3, width=4, layers=2)
fno, conv = networks.FNO(modes=2, width=4, layers=2), networks.SpectralConv(3, 4, modes=2)
flow = generative.Flow(own, D, solver={"steps": 2}).standardize(x)
given = generative.Flow(mlp_y, D, solver={"steps": 2}, context_dim=3).standardize(x, c)
convex = potentials.ConvexPotential(D, width=4)
convex_y = potentials.ConvexPotential(D, width=4, context_dim=3)
convex_map = generative.ConvexMap(convex, D).standardize(x)
schedule = generative.Schedule()
denoiser = generative.Denoiser(mlp, std=1.0)
score = generative.Score(denoiser, schedule)
ode = generative.ProbabilityFlow(score, schedule)
scaling, box = generative.Standardization(D).fit(x), generative.BoxScaling([-9.0, -9.0], [9.0, 9.0])
auto = potentials.AutodiffPotential(nn.Module())
auto.net.forward = lambda t, x: mean(x) + t
pinned = potentials.PinnedPotential(phi, phi)
scaled = potentials.ScaledPotential(phi, height=2.0, center=x[0], unit=torch.ones(D))
grid = grids.Grid((-3.0, -3.0), (3.0, 3.0), 9)
on_grid = torch.rand(grid.shape)
mixture = densities.eight_gaussians()
checkerboard, pinwheel = densities.Checkerboard(), densities.Pinwheel()
corridor, quadcopter = vehicles.Corridor(), vehicles.Quadcopter()
x4, x12 = torch.randn(N, 4), torch.randn(N, 12)
obstacle = problems.obstacle()
plan = transcription.straight(torch.zeros(4), torch.ones(4), torch.zeros(4), steps=3)
folder = Path(mkdtemp())
storage.save(folder / "a", {"x": 1})
weights = torch.randn(4, 3, 3)
smooth = networks.Control(weights, 0.25)
unit_box = [-9.0, -9.0], [9.0, 9.0]


class Game:
    """A game without interaction."""

    def log_initial(self, x):
        return dynamics.standard_normal_log_prob(x)

    def interaction(self, t, x, log_density):
        return generative.MeanFieldCost(0 * log_density, 0 * log_density)

    def terminal(self, x, log_density):
        return generative.MeanFieldCost(mean(x), mean(x))


def squared(model, batch):
    return model(batch).square().mean()


COLUMNS, DIMENSIONS, INTEGERS, NOTHING = "columns", "dimensions", "integers", "nothing"
wide, any_shape = {COLUMNS}, {COLUMNS, DIMENSIONS}
any_type = {INTEGERS}  # converted by design

CALLS = [
    # dynamics
    (
        dynamics.integrate,
        {"f": still, "state": x, "t0": 0.0, "t1": 1.0, "steps": 2},
        {"state": any_shape},
    ),
    (
        dynamics.integrate,
        {
            "f": still,
            "state": x,
            "t0": 0.0,
            "t1": 1.0,
            "tol": 1e-2,
            "backprop": "through",
            "max_steps": 99,
            "method": "dopri5",
            "save_at": torch.tensor([0.5]),
        },
        {"state": any_shape, "save_at": {COLUMNS, INTEGERS}},
    ),
    (
        dynamics.euler_maruyama,
        {
            "drift": still,
            "diffusion": 0.1,
            "x": x,
            "t0": 0.0,
            "t1": 1.0,
            "steps": 2,
            "generator": gen(),
        },
        {"x": any_shape},
    ),
    (
        dynamics.euler_maruyama,
        {
            "drift": still,
            "diffusion": 0.1,
            "x": x,
            "t0": 0.0,
            "t1": 1.0,
            "steps": 2,
            "dW": torch.randn(2, N, D),
        },
        {},
    ),
    (dynamics.divergence, {"v": torch.neg, "x": x}, {"x": wide}),
    (dynamics.divergence, {"v": lambda x: -x, "x": x}, {"x": wide}),
    (dynamics.hutchinson, {"v": lambda x: -x, "x": x, "eps": z}, {}),
    (dynamics.standard_normal_log_prob, {"z": z}, {"z": wide}),
    (
        dynamics.taylor_errors,
        {"f": mean, "df": lambda x, dx: 2 * (x * dx).sum(-1), "x": x, "dx": z, "steps": 3},
        {},
    ),
    (dynamics.Statistics, {"evaluations": 1}, {}),
    # metrics
    (metrics.accuracy, {"logits": x, "label": label}, {"logits": wide}),
    (metrics.cross_entropy, {"logits": x, "label": label}, {"logits": wide}),
    (metrics.predict, {"logits": x}, {"logits": wide}),
    (metrics.observed_orders, {"errors": [1.0, 0.5], "sizes": [0.2, 0.1]}, {}),
    (metrics.sliced_wasserstein, {"x": x, "y": z, "projections": 3, "generator": gen()}, {}),
    (metrics.c2st, {"x": x, "y": z, "seed": 0, "folds": 2}, {}),
    # networks
    (
        networks.MLP,
        {
            "d": 2,
            "width": 4,
            "hidden": 1,
            "context_dim": 0,
            "activation": torch.tanh,
            "generator": gen(),
        },
        {},
    ),
    (mlp.forward, {"t": 0.3, "x": x}, {}),
    (mlp.forward, {"t": t, "x": x}, {}),
    (mlp_y.forward, {"t": t, "x": x, "y": c}, {}),
    (networks.ConcatSquash, {"d": 2, "width": 4, "hidden": 1, "context_dim": 0}, {}),
    (squash.forward, {"t": 0.3, "x": x}, {}),
    (networks.Encoder, {"m": 3, "features": 2, "width": 4, "hidden": 1}, {}),
    (networks.Encoder(3, features=2, width=4).forward, {"y": c}, {}),
    (
        networks.ResNet,
        {"inputs": 2, "outputs": 3, "width": 4, "layers": 2, "horizon": 1.0, "scale": 0.1},
        {},
    ),
    (net.forward, {"y": x}, {}),
    (net.features, {"y": x}, {}),
    (net.path, {"y": x}, {}),
    (net.velocity, {"t": 0.3, "u": torch.randn(N, 4)}, {}),
    (net.refined, {"layers": 4}, {}),
    (networks.FNO, {"modes": 2, "width": 4, "layers": 2}, {}),
    (fno.forward, {"t": 0.3, "u": u}, {"u": wide}),
    (networks.SpectralConv, {"inputs": 3, "outputs": 4, "modes": 2}, {}),
    (conv.forward, {"u": torch.randn(8, 8, N, 3)}, {}),
    (architectures.antisymmetric_field, {"gamma": 0.1}, {}),
    (networks.time_features, {"t": t, "count": 6}, {"t": wide}),
    (lambda start: networks.tikhonov(start), {"start": weights}, {"start": any_shape}),
    (networks.time_smoothness, {"theta": weights, "h": 0.25}, {"theta": any_shape}),
    (networks.Control, {"start": weights, "h": 0.25, "smoothness": 1.0}, {"start": any_shape}),
    (architectures.architectures, {"gamma": 0.1}, {}),
    (embeddings.torus_features, {"u": u}, {"u": wide}),
    # potentials
    (
        potentials.ResNetPotential,
        {"d": 2, "width": 4, "layers": 2, "rank": 3, "context_dim": 0},
        {},
    ),
    (phi.forward, {"t": 0.3, "x": x}, {}),
    (phi.gradient, {"t": 0.3, "x": x}, {}),
    (phi.derivatives, {"t": t, "x": x}, {}),
    (phi.derivatives, {"t": 0.3, "x": x, "sigma": torch.eye(D)}, {"sigma": wide}),
    (auto.forward, {"t": 0.3, "x": x}, {"x": wide}),
    (auto.gradient, {"t": 0.3, "x": x}, {"x": wide}),
    (auto.derivatives, {"t": 0.3, "x": x}, {"x": wide}),
    (potentials.PinnedPotential, {"known": phi, "correction": phi, "horizon": 1.0}, {}),
    (pinned.forward, {"t": 0.3, "x": x}, {}),
    (pinned.gradient, {"t": 0.3, "x": x}, {}),
    (pinned.derivatives, {"t": 0.3, "x": x}, {}),
    (
        potentials.ScaledPotential,
        {"potential": phi, "height": 2.0, "center": x[0], "unit": torch.ones(D), "horizon": 1.0},
        {},
    ),
    (scaled.forward, {"t": 0.3, "x": x}, {}),
    (scaled.gradient, {"t": 0.3, "x": x}, {}),
    (scaled.derivatives, {"t": 0.3, "x": x}, {}),
    (potentials.ConvexPotential, {"d": 2, "width": 4, "layers": 2, "context_dim": 0}, {}),
    (convex.forward, {"x": x}, {}),
    (convex_y.forward, {"x": x, "y": c}, {}),
    (potentials.AutodiffPotential, {"net": mlp}, {}),
    # learning
    (
        consumed(learning.train),
        {"model": net, "loss": squared, "batches": lambda k: x, "steps": 2, "lr": 1e-4, "every": 1},
        {},
    ),
    (
        consumed(learning.train),
        {
            "model": net,
            "loss": squared,
            "batches": [x],
            "steps": 2,
            "average": 0.5,
            "max_grad_norm": 1.0,
        },
        {},
    ),
    (learning.autoclip, {"factor": 2.0, "window": 10}, {}),
    (learning.cosine, {"lr": 0.1, "steps": 4, "floor": 0.0}, {}),
    (
        lambda size, seed: learning.minibatches(x, z, size=size, seed=seed)(0),
        {"size": 2, "seed": 0},
        {},
    ),
    (storage.save, {"path": folder / "b", "tree": {"x": x}}, {"tree": {NOTHING}}),
    (storage.load, {"path": folder / "a"}, {}),
    # generative
    (
        generative.Flow,
        {"velocity": own, "d": 2, "solver": {"steps": 2}, "context_dim": 0, "box": unit_box},
        {},
    ),
    (flow.forward, {"x": x}, {"x": any_type}),
    (flow.inverse, {"z": z}, {}),
    (flow.transform, {"x": x}, {"x": any_type}),
    (flow.transform, {"x": x, "eps": z}, {"x": any_type}),
    (flow.log_prob, {"x": x}, {"x": any_type}),
    (flow.sample, {"n": 3, "generator": gen()}, {}),
    (flow.sample_with_log_prob, {"n": 3, "generator": gen()}, {}),
    (flow.objective, {"x": x, "steps": 2, "likelihood": 1.0, "hjb": 1.0}, {"x": any_type}),
    (flow.standardize, {"x": x}, {"x": any_type}),
    (given.standardize, {"x": x, "y": c}, {"x": any_type, "y": any_type}),
    (given.given, {"y": c}, {"y": {INTEGERS, DIMENSIONS}}),
    (generative.flow_matching, {"velocity": still, "x": x, "z": z, "t": t}, {}),
    (generative.ConvexMap, {"potential": convex, "d": 2, "context_dim": 0, "tol": 1e-5}, {}),
    (convex_map.forward, {"x": x}, {"x": any_type}),
    (convex_map.transform, {"x": x}, {"x": any_type}),
    (convex_map.log_prob, {"x": x}, {"x": any_type}),
    (convex_map.sample, {"n": 3, "generator": gen()}, {}),
    (convex_map.sample_with_log_prob, {"n": 3, "generator": gen()}, {}),
    (convex_map.inverse, {"z": z, "steps": 50}, {}),
    (generative.Schedule, {"start": 0.1, "end": 20.0}, {}),
    (schedule.a, {"t": 0.3}, {}),
    (schedule.s, {"t": t}, {"t": any_shape}),
    (schedule.beta, {"t": t}, {"t": any_shape}),
    (schedule.integral, {"t": t}, {"t": any_shape}),
    (generative.perturb, {"x": x, "eta": z, "t": t, "schedule": schedule}, {}),
    (generative.Denoiser, {"net": mlp, "std": 1.0}, {}),
    (denoiser.forward, {"t": 0.3, "x": x}, {}),
    (
        generative.denoising,
        {"denoiser": denoiser, "x": x, "eta": z, "t": t, "schedule": schedule},
        {},
    ),
    (generative.Score, {"denoiser": denoiser, "schedule": schedule, "first": 1e-3}, {}),
    (score.forward, {"t": 0.3, "x": x}, {}),
    (generative.ProbabilityFlow, {"score": score, "schedule": schedule}, {}),
    (ode.forward, {"t": 0.3, "x": x}, {}),
    (
        consumed(generative.reverse_sde),
        {
            "score": still,
            "noise": lambda: x,
            "schedule": schedule,
            "steps": 2,
            "method": "exponential",
            "last": "mean",
        },
        {},
    ),
    (
        generative.sample_sde,
        {"score": still, "noise": lambda: x, "schedule": schedule, "steps": 2},
        {},
    ),
    (generative.transport, {"potential": phi, "x": x, "steps": 2}, {}),
    (generative.ot_flow, {"potential": phi, "x": x, "steps": 2, "likelihood": 1.0, "hjb": 1.0}, {}),
    (
        generative.mean_field,
        {
            "potential": phi,
            "x": x,
            "game": Game(),
            "steps": 2,
            "hjb": 1.0,
            "terminal_condition": 1.0,
        },
        {},
    ),
    (generative.Standardization, {"d": 2}, {}),
    (scaling.fit, {"x": x}, {"x": any_type}),
    (scaling.forward, {"x": x}, {"x": any_type}),
    (scaling.inverse, {"z": z}, {}),
    (scaling.transform, {"x": x}, {"x": any_type}),
    (generative.BoxScaling, {"low": [0.0, 0.0], "high": [1.0, 1.0]}, {}),
    (box.fit, {"x": x}, {"x": any_type}),
    (box.forward, {"x": x}, {"x": any_type}),
    (box.inverse, {"z": z}, {}),
    (box.transform, {"x": x}, {"x": any_type}),
    (box.rounded, {"x": x, "z": z}, {}),
    # control
    (control.hamiltonian, {"problem": lq, "t": 0.3, "x": x, "p": z}, {}),
    (control.hjb_residual, {"problem": lq, "potential": phi, "t": 0.3, "x": x}, {}),
    (control.feedback, {"problem": lq, "potential": phi}, {}),
    (control.rollout, {"problem": lq, "policy": still, "x": x, "steps": 2, "generator": gen()}, {}),
    (control.rollout, {"problem": quiet, "policy": still, "x": x, "steps": 2, "method": "rk4"}, {}),
    (
        control.objective,
        {
            "problem": lq,
            "potential": phi,
            "x": x,
            "steps": 2,
            "dW": torch.randn(2, N, D),
            "hjb": 1.0,
            "cost": 1.0,
            "penalized": 4,
            "initial": 0.5,
        },
        {},
    ),
    (control.check, {"problem": lq, "x": x, "generator": gen(), "tolerance": 1e-3}, {}),
    # problems
    (
        problems.LinearQuadratic,
        {
            "target": torch.zeros(D),
            "weight": 1.0,
            "diffusion": 0.3,
            "gain": 1.0,
            "control_cost": 1.0,
            "horizon": 1.0,
        },
        {"target": wide},
    ),
    (lq.drift, {"t": 0.3, "x": x, "u": z}, {}),
    (lq.running_cost, {"t": 0.3, "x": x, "u": z}, {}),
    (lq.terminal_cost, {"x": x}, {}),
    (lq.optimal_control, {"t": 0.3, "x": x, "p": z}, {}),
    (problems.obstacle, {"noise": 1.0}, {}),
    (problems.Obstacle, {"linear_quadratic": lq, "height": 50.0, "variance": 0.4}, {}),
    (obstacle.hill, {"x": x}, {}),
    (obstacle.running_cost, {"t": 0.3, "x": x, "u": z}, {}),
    (problems.on_grid, {"problem": obstacle, "grid": grid, "times": 2}, {}),
    (corridor.running_cost, {"t": 0.3, "x": x4, "u": x4}, {}),
    (corridor.terminal_cost, {"x": x4}, {}),
    (corridor.distance, {"x": x4}, {}),
    (corridor.obstacles, {"x": x}, {}),
    (vehicles.Corridor, {"obstacle": 1.0, "repulsion": 1.0, "radius": 0.5}, {}),
    (vehicles.Quadcopter, {"diffusion": 0.1, "mass": 1.0, "gravity": 9.81}, {}),
    (quadcopter.drift, {"t": 0.3, "x": x12, "u": x4}, {}),
    (quadcopter.optimal_control, {"t": 0.3, "x": x12, "p": x12}, {}),
    (quadcopter.axis, {"x": x12}, {}),
    (symbolic.quadcopter, {"problem": quadcopter}, {}),
    (symbolic.corridor, {"problem": corridor}, {}),
    (mixture.sample, {"n": 3, "generator": gen()}, {}),
    (mixture.log_prob, {"x": x}, {}),
    (mixture.score, {"x": x}, {}),
    (mixture.entropy, {"n": 9, "generator": gen()}, {}),
    (checkerboard.sample, {"n": 3, "generator": gen()}, {}),
    (checkerboard.log_prob, {"x": x}, {}),
    (pinwheel.log_prob, {"x": x}, {}),
    (densities.Pinwheel, {"arms": 5, "rate": 0.25}, {}),
    (
        densities.Mixture,
        {"weights": torch.ones(3) / 3, "means": torch.randn(3, 2), "std": torch.ones(3, 2)},
        {},
    ),
    (densities.ring_of_gaussians, {"d": 2, "components": 8, "radius": 4.0, "variance": 0.3}, {}),
    (densities.swissroll, {"nodes": 16}, {}),
    (densities.circles, {"nodes": 16}, {}),
    (densities.moons, {"nodes": 16}, {}),
    (densities.two_spirals, {"nodes": 16}, {}),
    (classification.ellipses, {"seed": 0, "train": 5, "val": 5}, {}),
    (classification.swiss_roll, {"seed": 0, "nodes": 8}, {}),
    (classification.peaks, {"seed": 0, "train": 5, "val": 5, "grid": 32}, {}),
    (classification.peaks_of, {"y": x}, {}),
    (classification.digits, {"seed": 0, "fraction": 0.2}, {}),
    (datasets.as_fields, {"image": torch.rand(N, 64)}, {}),
    (datasets.concrete, {"generator": gen(), "jitter": 0.1}, {}),
    # references
    (grids.Grid, {"low": (0.0, 0.0), "high": (1.0, 1.0), "nodes": 5}, {}),
    (grid.faces, {"axis": 0}, {}),
    (advection.interpolate, {"u": on_grid, "grid": grid, "x": x}, {}),
    (
        advection.characteristics,
        {"v": still, "u": mean, "x": x, "t0": 0.0, "t1": 1.0, "steps": 2},
        {"x": wide},
    ),
    (
        advection.semi_lagrangian,
        {"v": still, "u": on_grid, "grid": grid, "t0": 0.0, "t1": 0.1, "steps": 2},
        {},
    ),
    (
        advection.upwind,
        {"v": still, "u": on_grid, "grid": grid, "t0": 0.0, "t1": 0.1, "steps": 4},
        {},
    ),
    (
        advection.continuity,
        {"v": still, "rho": on_grid, "grid": grid, "t0": 0.0, "t1": 0.1, "steps": 4},
        {},
    ),
    (
        finite_differences.hamilton_jacobi,
        {
            "hamiltonian": lambda t, x, p: -0.5 * mean(p),
            "w": on_grid,
            "grid": grid,
            "times": [0.1, 0.0],
            "cfl": 0.5,
        },
        {},
    ),
    (
        transcription.straight,
        {"x0": torch.zeros(2), "x1": torch.ones(2), "u": torch.zeros(2), "steps": 3},
        {"u": wide},
    ),
    (transcription.refined, {"plan": plan, "steps": 5}, {}),
]
torch.set_default_dtype(before)
