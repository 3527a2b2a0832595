"""The built pages, as a reader's browser shows them: with no network, in light and in dark."""

import contextlib
import copy
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urljoin, urlsplit
from xml.etree import ElementTree

import nbformat
import pytest
import torch
import yaml
from axe_playwright_python.base import AXE_FILE_PATH
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from torch import Tensor

import ctdl_lib
from ctdl_lib.control import feedback, rollout
from ctdl_lib.dynamics import integrate
from ctdl_lib.generative.diffusion import Schedule, sample_sde
from ctdl_lib.potentials import PinnedPotential, ResNetPotential
from ctdl_lib.problems.control import obstacle
from ctdl_lib.problems.densities import TOYS, Mixture
from experiments import playgrounds
from experiments.pde_control.mitigation import best_openings
from experiments.pde_control.networks import steering
from experiments.playgrounds import basin, hill, layers, posterior, wind
from experiments.playgrounds.weights import as_received
from machinery import chapters, printing, slides
from machinery.printing import BROWSERS

REPOSITORY = "https://github.com/example/ctdl"
SITE = "https://example.github.io/ctdl"
COLAB = "https://colab.research.google.com/github/example/ctdl/blob/notebooks/"
BINDER = "https://mybinder.org/v2/gh/example/ctdl/main?urlpath=lab/tree/"
QUIET = [
    *("--no-sandbox", *printing.FLAGS, "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
TOC = yaml.safe_load((chapters.ROOT / "_toc.yml").read_text())
CHAPTERS = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
NESTED = [section for chapter in CHAPTERS for section in chapter.get("sections", [])]
PAGES = [TOC["root"], *(page["file"] for page in [*CHAPTERS, *NESTED])]
# The pages of playgrounds, with the names of those that each has.
PLAYED = {
    path.stem: re.findall(r"```{playground} (\w+)", path.read_text("utf-8"))
    for path in sorted(chapters.BOOK.glob("play_*.md"))
}
AXE_SOURCE = Path(AXE_FILE_PATH).read_text()
PIECES = sorted(path.stem for path in (chapters.BOOK / "_static/playground/pieces").iterdir())
NOTEBOOKS = [f"book/{chapter.name}" for chapter in [*chapters.all_chapters(), *chapters.guides()]]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and does not log."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, built apart from the reader's own _build, with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    done = subprocess.run(
        [jupyter_book, "build", ".", "--path-output", folder, "-n", "-W", "--keep-going", "-q"],
        cwd=chapters.ROOT,
        env=os.environ | {"REPOSITORY": REPOSITORY, "SITE": SITE},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the pages are served."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(
            "no Chromium: install it, e.g. `apt-get install chromium`, "
            "`dnf install chromium` or `brew install --cask chromium`"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """An empty tab in one theme."""
    with opened(browser, address, request.param) as tab:
        yield tab
        assert theme(tab) == request.param


@contextlib.contextmanager
def opened(
    browser: Browser, address: str, scheme: Literal["light", "dark"], **how: Any
) -> Iterator[Page]:
    """An empty tab. At its end: nothing was asked of the network, no error on the console."""
    context = browser.new_context(color_scheme=scheme, base_url=address, **how)
    tab, errors, requests = context.new_page(), [], []
    tab.on("console", lambda m: errors.append((m.text, m.location)) if m.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda r: requests.append(r.url))
    yield tab
    context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def theme(page: Page) -> str:
    """The theme that the page shows."""
    return page.evaluate("document.documentElement.dataset.theme")


def visit(page: Page, name: str) -> None:
    """Open a page and wait until its formulae are set."""
    page.goto(f"{name}.html")
    page.evaluate("() => window.MathJax ? MathJax.startup.promise : null")


def until(page: Page, condition: str, arg: Any = None) -> None:
    """Wait for a condition, without the code that the policy of content forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition, arg):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


# --- in the browser -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_page_shows_its_formulas_and_pictures_to_everyone(browser, address, name):
    """It is opened once, in light, and then its reader turns to dark."""
    with opened(browser, address, "light") as page:
        visit(page, name)
        page.evaluate("source => { (0, eval)(source); }", AXE_SOURCE)
        assert untyped_formulas(page) == []
        assert page.locator("img:not([alt]), img[alt='']").count() == 0
        assert page.evaluate(LOADED)
        assert cut_off(page) == []
        assert serious_violations(page) == []
        page.emulate_media(color_scheme="dark")
        until(page, "document.documentElement.dataset.theme == 'dark'")
        page.evaluate("() => Promise.all(document.getAnimations().map(a => a.finished))")
        assert page.evaluate(LOADED)
        assert cut_off(page) == []
        assert serious_violations(page, contrast_alone=True) == []  # all else is the same as before
        for width in (768, 390):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert page.evaluate(SCROLLING) == []


# The formulas that a reader has to move sideways.
SCROLLING = """() => [...document.querySelectorAll('article mjx-container[display=true]')]
    .filter(e => [e, e.parentElement].some(box => box.scrollWidth > box.clientWidth + 1))
    .map(e => e.parentElement.id || e.textContent.slice(0, 80))"""


def test_a_phone_scrolls_the_index_of_names_not_sideways(browser, address):
    with opened(browser, address, "light", viewport={"width": 390, "height": 844}) as page:
        visit(page, "genindex")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


LOADED = "() => [...document.images].every(i => i.complete && i.naturalWidth > 0)"


def cut_off(page: Page) -> list[str]:
    """The tables and displayed formulae that reach over the edge of the text, or of their box."""
    wide = "article table, article mjx-container[display=true], article mjx-math"
    return page.evaluate(
        """wide => [...document.querySelectorAll(wide)]
            .filter(e => e.scrollWidth > e.clientWidth + 1 && e.matches('mjx-container') ||
                         e.getBoundingClientRect().right >
                         e.closest('article').getBoundingClientRect().right + 1)
            .map(e => e.textContent.slice(0, 80))""",
        wide,
    )


def untyped_formulas(page: Page) -> list[str]:
    """The formulae that MathJax left alone, or could not read in full."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.math')]
            .filter(e => !e.querySelector('mjx-container') ||
                         e.querySelector('mjx-merror, [style*="color: red"]'))
            .map(e => e.textContent)"""
    )


def serious_violations(page: Page, *, contrast_alone: bool = False) -> list[str]:
    """What axe finds serious or critical, with the elements concerned: by all rules, or by one.

    The contrast of a text depends on its colours and its font. So axe checks three texts of each
    combination of them, in place of all.
    """
    violations = page.evaluate(AXE, contrast_alone)
    return [
        f"{found['id']}: {node['html'][:200]}"
        for found in violations
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


# Loading style sheets by itself, axe asks for wrong addresses where one imports another.
AXE = """async alone => {
    const how = {preload: false, resultTypes: ['violations']}, contrast = 'color-contrast';
    const rules = {[contrast]: {enabled: false}};
    const others = alone ? [] : (await axe.run({...how, rules})).violations;
    const kinds = new Map();
    for (const e of document.body.querySelectorAll('*')) {
        if (![...e.childNodes].some(n => n.nodeType == Node.TEXT_NODE && n.data.trim())) continue;
        if (!e.checkVisibility()) continue;
        const style = getComputedStyle(e);
        const kind = [style.color, style.fontSize, style.fontWeight, style.opacity];
        for (let at = e; at; at = at.parentElement) {
            const ground = getComputedStyle(at);
            kind.push(ground.opacity);
            if (ground.backgroundImage != 'none') kind.push(ground.backgroundImage);
            if (ground.backgroundColor == 'rgba(0, 0, 0, 0)') continue;
            kind.push(ground.backgroundColor);
            if (ground.backgroundColor.startsWith('rgb(')) break;
        }
        const key = kind.join();
        const alike = kinds.get(key) ?? kinds.set(key, []).get(key);
        if (alike.length < 3) alike.push(e);  // axe cannot judge a text that something covers
    }
    const shown = [...kinds.values()].flat();
    const found = await axe.run({include: shown}, {...how, runOnly: [contrast]});
    return [...others, ...found.violations];
}"""


def test_a_pale_text_among_many_is_found(page):
    visit(page, "book/style")
    page.evaluate("source => { (0, eval)(source); }", AXE_SOURCE)
    assert serious_violations(page) == []
    page.locator("article p").last.evaluate("e => { e.style.color = '#777'; e.id = 'pale' }")
    for alone in (False, True):
        (found,) = serious_violations(page, contrast_alone=alone)
        assert found.startswith("color-contrast: <p")
        assert "pale" in found


def test_search_finds_the_adjoint(page):
    page.goto("search.html?q=adjoint")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a").count() >= 1


def test_the_film_rests_until_it_is_played(page):
    visit(page, "book/01_resnets")
    film = page.locator("[id^=film]")
    slider, button = film.get_by_role("slider"), film.locator("button")
    picture = film.locator("img")
    first = picture.get_attribute("src")
    assert slider.input_value() == "0"
    button.click()
    until(page, "() => +document.querySelector('[id^=film] input').value >= 3")
    button.click()
    assert picture.get_attribute("src") != first
    slider.fill("0")
    assert picture.get_attribute("src") == first
    # faster, and again from the start
    film.get_by_label("speed").select_option("2")
    film.get_by_label("loop").check()
    slider.fill(slider.get_attribute("max") or "")
    button.click()
    until(page, "() => +document.querySelector('[id^=film] input').value == 2")
    button.click()


def test_solutions_are_collapsed_until_asked_for(page):
    visit(page, "book/01_resnets")
    solution = page.locator(".solution").first
    output = solution.locator(".cell_output").first
    assert not output.is_visible()
    solution.locator("button").first.click()
    assert output.is_visible()


def test_drawings_follow_the_theme_and_are_named(page):
    page.set_viewport_size({"width": 390, "height": 844})
    visit(page, "book/03_neural_odes")
    drawings = page.locator("figure.diagram svg[role=img]")
    assert drawings.count() == 2
    for drawing in drawings.all():
        name = drawing.get_attribute("aria-labelledby")
        assert len(page.locator(f"#{name}").text_content() or "") > 50
        assert drawing.evaluate(PALE_OR_SMALL) == []


# The texts of a drawing whose contrast with the page is under 4.5, or which are under 12 pixels.
PALE_OR_SMALL = """svg => {
    const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0.05);
    const ground = light(getComputedStyle(document.body).backgroundColor);
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return [...svg.querySelectorAll('text')].filter(text => {
        const {fill, fontSize} = getComputedStyle(text), ratio = light(fill) / ground;
        return Math.max(ratio, 1 / ratio) < 4.5 || parseFloat(fontSize) * scale < 12;
    }).map(text => text.textContent);
}"""


def test_the_sentence_of_a_term_shows_for_mouse_and_keyboard_and_escape_hides_it(page):
    visit(page, "book/12_hjb_and_pontryagin")
    term = page.locator("a.term", has_text="value function").first
    says = page.locator(f"#{term.get_attribute('aria-describedby')}")
    assert not says.is_visible()
    term.focus()
    assert says.inner_text() == "The least cost that is left from a state at a time on."
    page.keyboard.press("Escape")
    assert not says.is_visible()
    page.mouse.move(0, 0)
    term.hover()
    assert says.is_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    box = says.bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def test_a_card_of_the_map_is_a_link_as_a_whole(page):
    page.emulate_media(reduced_motion="reduce")
    visit(page, "book/intro")
    page.locator("ul.chapter-map img").nth(6).click(force=True)  # the link lies on the picture
    page.wait_for_url("**/book/07_ot_flow.html")


# --- playgrounds --------------------------------------------------------------------------------


def play(page: Page, name: str) -> None:
    """Open the page that has a playground."""
    (found,) = [stem for stem, names in PLAYED.items() if name in names]
    visit(page, f"book/{found}")


def in_script(page: Page, code: str, *args: object, of: str = "flow") -> Any:
    """What an asynchronous function of the pieces, and of what a playground knows, returns."""
    return page.evaluate(
        f"""async args => {{
            const at = name => new URL(`_static/playground/${{name}}`, args[0]).href;
            const files = {PIECES}.map(name => import(at(`pieces/${{name}}.js`)));
            const pieces = Object.assign({{}}, ...await Promise.all(files));
            const stored = await fetch(at('{of}.json'));
            const known = await stored.json(), {{flows}} = known;
            {code}
        }}""",
        [urljoin(page.url, ".."), *args],
    )


def test_the_pieces_in_the_browser_are_those_of_the_library(page):
    play(page, "flow")
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * 2
    times = torch.linspace(0, 1, 20)
    close: Any = {"rtol": 1e-9, "atol": 1e-9}

    phi = as_received(playgrounds.flow_of("OT-Flow").velocity)
    assert isinstance(phi, ResNetPotential)
    code = "const phi = pieces.potential(flows['OT-Flow'].weights);"
    code += "return args[1].map((t, i) => phi(t, args[2][i]))"
    code += ".map(p => [p.value, p.dt, ...p.dx, p.laplacian]);"
    found = torch.tensor(in_script(page, code, times.tolist(), x.tolist()))
    ours = phi.derivatives(times.double(), x.double())
    columns = (ours.value[:, None], ours.dt[:, None], ours.dx, ours.laplacian[:, None])
    assert torch.allclose(found, torch.cat(columns, 1), **close)

    net = as_received(playgrounds.flow_of("FFJORD").velocity)
    code = "const v = pieces.velocity(flows.FFJORD); const path = x => pieces.rk4(v, x, 1, 0, 5);"
    code += "return args[1].map(x => path(x).map(point => [...point]));"
    found = torch.tensor(in_script(page, code, x.tolist()))
    end = integrate(net, x.double(), 1.0, 0.0, steps=5)
    assert torch.allclose(found[:, -1], end, **close)
    assert torch.equal(found[:, 0], x)


def test_weights_of_16_bits_move_points_to_nearly_the_same_ends():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    for name in playgrounds.FLOWS:
        flow = playgrounds.flow_of(name).double()
        ends = flow(x)
        flow.velocity = as_received(flow.velocity)
        assert 0 < (flow(x) - ends).abs().max() < 0.01


def test_the_score_in_the_browser_is_exact_and_its_steps_are_those_of_the_library(page):
    play(page, "score")
    data, schedule = TOYS["8gaussians"], Schedule()
    assert isinstance(data, Mixture)
    means, v = data.means.double(), data.std[0, 0].item() ** 2
    t = torch.linspace(0.01, 1, 9, dtype=torch.float64)
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()

    def log_density(t: Tensor, x: Tensor) -> Tensor:
        spread = schedule.a(t) ** 2 * v + schedule.s(t) ** 2
        far = (x[:, None] - schedule.a(t)[:, None, None] * means).square().sum(2)
        return torch.logsumexp(-far / (2 * spread[:, None]), 1) - spread.log()

    def score(t: float | Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            t = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
            return torch.autograd.grad(log_density(t, x).sum(), x)[0]

    close: Any = {"rtol": 1e-5, "atol": 1e-5}
    code = "const score = pieces.mixtureScore(args[1], args[2]);"
    each = code + "return args[3].map((t, i) => [...score(t, args[4][i])]);"
    found = in_script(page, each, means.tolist(), v, t.tolist(), x.tolist())
    assert torch.allclose(torch.tensor(found), score(t, x), **close)

    noise = torch.randn(7, 1, 2, generator=torch.Generator().manual_seed(1)).double()
    code += "const noise = args[3].values(), times = [0, 1, 2, 3, 4, 5, 6].map(k => 1 - k / 6);"
    code += "return [...pieces.denoise(score, noise.next().value, times, 1,"
    code += " () => noise.next().value).at(-1)];"
    found = in_script(page, code, means.tolist(), v, noise[:, 0].tolist())
    draws = iter(noise)
    how: Any = {"steps": 6, "method": "euler-maruyama"}
    ours = sample_sde(score, lambda: next(draws), schedule, **how)
    assert torch.allclose(torch.tensor(found), ours[0], **close)


def test_the_adaptive_solver_in_the_browser_keeps_its_tolerance(page):
    play(page, "solver")
    code = "const f = (t, x) => Float64Array.of(x[1], -x[0] + Math.sin(t));"
    adaptive = (
        code + "const {accepted, evaluations} = pieces.dormandPrince(f, [1, 0], 0, 6, args[1]);"
    )
    adaptive += "return [accepted.length, evaluations, ...accepted.at(-1).x];"

    def f(t: Tensor, x: Tensor) -> Tensor:
        return torch.stack([x[:, 1], -x[:, 0] + torch.sin(torch.as_tensor(t))], 1)

    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    exact = integrate(f, start, 0.0, 6.0, tol=1e-12)[0]
    errors, counts = [], []
    for tol in (1e-3, 1e-6, 1e-9):
        steps, evaluations, *end = in_script(page, adaptive, tol)
        assert evaluations >= 6 * (steps - 1) + 1
        errors.append((torch.tensor(end, dtype=torch.float64) - exact).norm().item())
        counts.append(steps)
        assert errors[-1] < 10 * tol
    assert errors == sorted(errors, reverse=True)
    assert counts == sorted(counts)
    # order five: a thousandth of the tolerance takes 1000^(1/5) = 4 times the steps
    assert counts[2] / counts[1] == pytest.approx(1000**0.2, rel=0.2)

    found = in_script(page, code + "return [...pieces.euler(f, [1, 0], 0, 6, 50).at(-1)];")
    ours = integrate(f, start, 0.0, 6.0, steps=50, method="euler")[0]
    assert torch.allclose(torch.tensor(found), ours, rtol=1e-9, atol=1e-9)


def test_the_feedback_in_the_browser_is_that_of_the_library(page):
    play(page, "hill")
    g, problem = torch.Generator().manual_seed(0), obstacle()
    phi = as_received(hill.value_function().correction)
    phi = PinnedPotential(problem.linear_quadratic.value(), phi)
    t, x = torch.rand(20, generator=g).double(), (6 * torch.rand(20, 2, generator=g) - 3).double()
    code = "const {problem, correction} = known, hill = pieces.obstacle(problem);"
    code += "const phi = pieces.pinned(pieces.quadratic(problem), pieces.potential(correction));"
    each = code + "return args[1].map((t, i) => phi(t, args[2][i])).map(p => [p.value, ...p.dx]);"
    found = torch.tensor(in_script(page, each, t.tolist(), x.tolist(), of="hill"))
    ours = phi.gradient(t, x)
    close: Any = {"rtol": 1e-5, "atol": 1e-5}
    assert torch.allclose(found.double(), torch.cat([ours.value[:, None], ours.dx], 1), **close)

    dW = torch.randn(25, 20, 2, generator=g).double() / 5
    kicks = dW @ torch.as_tensor(problem.diffusion).T
    code += "const policy = (t, x) => hill.control(x, phi(t, x).dx);"
    code += "return args[1].map((x, i) => pieces.rollout(hill, policy, x, args[2][i]))"
    code += ".map(({path, cost}) => [...path.at(-1), cost]);"
    found = in_script(page, code, x.tolist(), kicks.permute(1, 0, 2).tolist(), of="hill")
    path = rollout(problem, feedback(problem, phi), x, steps=25, dW=dW)
    ours = torch.cat([path.x[-1], path.cost[:, None]], 1)
    assert torch.allclose(torch.tensor(found).double(), ours, **close)


def test_the_layers_in_the_browser_are_those_of_the_library(page):
    play(page, "layers")
    y = 3 * torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).double() - 1.5
    code = "const {weights, horizon} = known.nets[args[1]], net = pieces.resnet(weights, horizon);"
    code += "return args[2].map(y => net.path(y, args[3]).at(-1))"
    code += ".map(u => [...u, net.probability(u)]);"
    for name in layers.NAMES:
        net = as_received(layers.network(name))
        for n in (net.layers // 4, net.layers, 2 * net.layers):
            found = in_script(page, code, name, y.tolist(), n, of="layers")
            end = net.features(y)
            if n != net.layers:
                start, how = y @ net.K_in.T, {"steps": n, "method": "euler"}
                end = integrate(net.velocity, start, 0.0, net.horizon, **how)
            logit = end @ net.K_out.T + net.b_out
            ours = torch.cat([end, logit.sigmoid()], 1)
            assert torch.allclose(torch.tensor(found).double(), ours, rtol=1e-5, atol=1e-5)


def test_the_flights_in_the_browser_are_those_of_the_library(page):
    play(page, "wind")
    g = torch.Generator().manual_seed(0)
    x = wind.plans.QUAD.start + 0.1 * torch.randn(5, 12, generator=g).double()
    dW = torch.randn(wind.STEPS, 5, 12, generator=g).double() / 10
    code = "const {problem, frame, weights, plan} = known, quad = pieces.quadcopter(problem);"
    code += "const phi = pieces.scaled(pieces.potential(weights), frame);"
    code += "const {planned, linear} = pieces.along(plan);"
    code += "const network = (t, x) => quad.control(x, phi(t, x).dx);"
    code += "const fly = (u, x, i) => pieces.rollout(quad, u, x, args[2][i]);"
    code += "return [planned, linear, network].map(u => args[1].map((x, i) => fly(u, x, i)))"
    code += ".map(some => some.map(({path, cost}) => [...path.at(-1), cost]));"
    kicks = 0.2 * dW.permute(1, 0, 2)
    found = torch.tensor(in_script(page, code, x.tolist(), kicks.tolist(), of="wind")).double()
    for ends, policy in zip(found, wind.policies().values(), strict=True):
        path = rollout(wind.plans.QUAD, policy, x, steps=wind.STEPS, dW=dW)
        ours = torch.cat([path.x[-1], path.cost[:, None]], 1)
        assert torch.allclose(ends, ours, rtol=1e-5, atol=1e-5)


def test_the_posteriors_in_the_browser_are_those_of_the_library(page):
    play(page, "posterior")
    g, flow, n = torch.Generator().manual_seed(0), copy.copy(posterior.flow()), 20
    y, z = torch.rand(n, 2, generator=g).double() - 0.7, torch.randn(n, 2, generator=g).double()
    code = "const flow = pieces.conditionalFlow(known);"
    code += "return args[1].map((y, i) => flow.path(y, args[2][i], args[3]))"
    code += ".map((path, i) => [...path.at(-1), pieces.moonRadius(path.at(-1), args[1][i])])"
    code += ".map(([p, q, r]) => [p, q, pieces.moonLogLikelihood(r)]);"
    for steps in (1, 6):
        flow.solver = {"steps": steps}
        found = in_script(page, code, y.tolist(), z.tolist(), steps, of="posterior")
        x, likelihood = torch.tensor(found, dtype=torch.float64).split([2, 1], 1)
        assert torch.allclose(x, flow.given(y).inverse(z), rtol=1e-5, atol=1e-5)
        theirs = posterior.TASK.log_likelihood(x, y)
        constant = theirs[0] - likelihood[0]
        assert torch.allclose(likelihood[:, 0] + constant, theirs, rtol=1e-5, atol=1e-5)


def test_the_basin_in_the_browser_is_that_of_the_chapter(page):
    play(page, "basin")
    code = "const problem = pieces.basin(known.constants, args[1]);"
    code += "const policy = pieces.opening(known.weights), plan = pieces.bestOpenings(problem);"
    code += "const all = [policy, (t, u, y, k) => plan[k]].map(a => pieces.drain(problem, a));"
    code += "return all.map(({states, openings, cost}) => [...states.at(-1), ...openings, cost]);"
    for kind, speed, source, sink in (
        ("one", 0.8, (0.3, 0.35), (0.65, 0.6)),
        ("beside", -1.2, (0.45, 0.7), (0.1, 0.9)),
    ):
        like = basin.problem(kind, speed, 1.3, source, sink)
        stream = like.basins.stream[0].tolist()
        given = {"stream": stream, "speed": speed, "strength": 1.3, "source": source, "sink": sink}
        found = torch.tensor(in_script(page, code, given, of="basin"), dtype=torch.float64)
        control, best = steering("policy", basin.policy(), like), best_openings(like)
        path = rollout(like, control, like.start, steps=25)
        openings = [control(t, x)[:, 0] for t, x in zip(path.t, path.x, strict=True)][:-1]
        by_policy = torch.cat([path.x[-1, 0], *openings, path.cost]).detach()
        by_plan = torch.cat([best.controls[0], best.cost])
        assert torch.allclose(found[0], by_policy, rtol=1e-5, atol=1e-5)
        assert torch.allclose(found[1][-26:], by_plan, rtol=1e-5, atol=1e-5)


def parts_of(page: Page, name: str) -> Callable[[str], Locator]:
    """The parts of a playground that has started."""
    figure = f"[data-playground={name}]"
    page.wait_for_selector(f"{figure}[data-ready]")
    return lambda part: page.locator(f"{figure} [data-part={part}]")


def test_a_reader_drops_points_and_takes_fewer_steps(page):
    play(page, "flow")
    part = parts_of(page, "flow")
    said = lambda: part("says").inner_text()  # noqa: E731
    error = lambda: float(said().split(" away")[0].split()[-1])  # noqa: E731
    few = error()
    part("steps").fill("1")
    one = error()
    assert "40 points, 1 step:" in said()
    assert one > few
    part("model").select_option("FFJORD")
    assert error() > 2 * one  # its paths are bent
    part("clear").click()
    assert "No points yet" in said()
    part("canvas").click(position={"x": 100, "y": 100})
    part("canvas").press("ArrowLeft")
    assert "Cursor at -0.2, 0.0" in said()
    part("canvas").press("Enter")
    assert "FFJORD, 2 points" in said()
    part("way").select_option("backward")
    part("time").fill("0")
    part("play").click()
    time = "[data-playground=flow] [data-part=time]"
    until(page, f"() => +document.querySelector('{time}').value > 10")


def test_layers_with_imaginary_eigenvalues_grow_and_runge_kutta_steps_do_not(page):
    play(page, "stable")
    part = parts_of(page, "stable")
    lost = lambda: float(part("says").inner_text().split(" away")[0].split()[-1])  # noqa: E731
    assert "|1 + hλ| = 1.020" in part("says").inner_text()
    by_euler = lost()
    part("scheme").select_option("rk4")
    assert lost() < 1e-3 < by_euler
    part("real").fill("-1")
    part("step").fill("0.5")
    assert lost() > 0.01  # what has nearly vanished does not come back


def test_stiffness_makes_the_solver_work_and_take_back_steps(page):
    play(page, "solver")
    part = parts_of(page, "solver")
    read = lambda: [int(n) for n in re.findall(r"\d+", part("says").inner_text())[:3]]  # noqa: E731
    accepted, _, evaluations = read()
    part("tolerance").fill("8")
    assert read()[0] > 3 * accepted
    part("tolerance").fill("4")
    part("stiffness").fill("20")
    assert read()[1] > 5
    assert read()[2] != evaluations
    said = part("says").inner_text()
    part("canvas").press("ArrowUp")
    assert part("says").inner_text() != said


def test_many_steps_bring_all_points_to_the_data(page):
    play(page, "score")
    part = parts_of(page, "score")
    percent = re.compile(r"(\d+) %")
    shares = lambda: [int(n) for n in percent.findall(part("says").inner_text())[:2]]  # noqa: E731
    part("steps").fill("3")
    few = shares()
    part("steps").fill("100")
    assert min(shares()) >= 95 > max(few)
    said = part("says").inner_text()
    part("renew").click()
    part("grid").select_option("root")
    assert part("says").inner_text() != said


def test_noise_makes_a_plan_expensive_and_a_feedback_less_so(page):
    play(page, "hill")
    part = parts_of(page, "hill")
    costs = lambda: [float(n) for n in re.findall(r"costs (\d+\.\d)", part("says").inner_text())]  # noqa: E731
    part("noise").fill("0")
    steered, blind = costs()
    assert steered == blind
    part("noise").fill("1")
    steered, blind = costs()
    assert blind > 1.5 * steered
    part("renew").click()
    assert costs() != [steered, blind]
    part("canvas").press("ArrowRight")
    assert "From (-1.4, -0.5)" in part("says").inner_text()
    part("canvas").click(position={"x": 1, "y": 1})
    assert "From (-3.0, 3.0)" in part("says").inner_text()


def test_few_layers_tell_fewer_points_right(page):
    play(page, "layers")
    part = parts_of(page, "layers")
    right = lambda: int(part("says").inner_text().split(" %")[0].split()[-1])  # noqa: E731
    trained = right()
    assert trained > 95
    part("share").select_option("0.25")
    assert right() < trained
    assert "5 layers of step 0.40" in part("says").inner_text()
    part("model").select_option("swiss roll")
    part("share").select_option("1")
    assert right() > 95
    part("time").fill("50")
    assert part("time-shown").inner_text() == "16 of 32"
    said = part("says").inner_text()
    part("before").press("ArrowUp")
    assert part("says").inner_text() != said


def test_wind_throws_the_open_loop_off(page):
    play(page, "wind")
    part = parts_of(page, "wind")
    said = lambda: part("says").inner_text()  # noqa: E731
    costs = lambda: [int(n) for n in re.findall(r"costs (\d+)", said())]  # noqa: E731
    planned, linear, network = costs()
    assert planned > 3 * max(linear, network)
    part("wind").fill("0")
    assert costs()[0] == min(costs()) == costs()[1]  # without wind nothing beats the plan
    part("wind").fill("0.4")
    before = costs()
    part("renew").click()
    assert costs() != before


def test_a_posterior_follows_the_observation_also_where_nothing_explains_it(page):
    play(page, "posterior")
    part = parts_of(page, "posterior")
    said = lambda: part("says").inner_text()  # noqa: E731
    near = lambda: int(said().split(" % lie on the crescents")[0].split()[-1])  # noqa: E731
    many = near()
    assert many > 85
    part("steps").fill("1")
    assert near() < many
    part("steps").fill("6")
    part("before").press("ArrowLeft")
    assert "Observation (-0.15, 0.20), 100 points by 6 steps" in said()
    before = said()
    part("renew").click()
    assert said() != before
    part("before").click(position={"x": 3, "y": 3})
    assert "no parameters in the box explain it" in said()


def test_a_policy_opens_the_drain_and_costs_little_more_than_the_best_plan(page):
    play(page, "basin")
    part = parts_of(page, "basin")
    said = lambda: part("says").inner_text()  # noqa: E731
    costs = lambda: [float(n) for n in re.findall(r"(?:shut|policy|plan) (\d+\.\d+)", said())]  # noqa: E731
    shut, policy, best = costs()
    assert best < policy < 1.05 * best < shut
    assert "are in the ranges" in said()
    part("strength").fill("2")
    doubled = costs()
    assert doubled[2] == pytest.approx(4 * best, rel=0.01)  # Exercise 2 of the chapter
    assert "are outside of the ranges" in said()
    part("stream").select_option("one")
    part("speed").fill("-1")
    assert costs() != doubled
    part("moved").select_option("sink")
    part("middle").press("ArrowRight")
    assert "drain at (0.52, 0.30)" in said()
    part("before").click(position={"x": 1, "y": 1})
    assert "drain at (0.0" in said()


def test_a_still_picture_stays_where_scripts_are_off(browser, address):
    context = browser.new_context(java_script_enabled=False, base_url=address)
    tab = context.new_page()
    for name in ("intro", *PLAYED):
        tab.goto(f"book/{name}.html")
        pictures = tab.locator("figure.playground img").all()
        assert pictures
        assert all(picture.is_visible() for picture in pictures)
        assert tab.locator("figure.playground canvas").count() == 0
    context.close()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_the_first_page_moves_only_for_those_who_like_it(browser, address, motion):
    context = browser.new_context(reduced_motion=motion, base_url=address)
    tab = context.new_page()
    tab.goto("book/intro.html")
    tab.wait_for_selector("[data-playground=hero][data-ready]")
    seen = "() => document.querySelector('figure.playground canvas').toDataURL()"
    first = tab.evaluate(seen)
    if motion == "reduce":
        tab.wait_for_timeout(300)
        assert tab.evaluate(seen) == first
    else:
        until(tab, f"first => ({seen})() != first", arg=first)
        tab.locator("figure.playground [data-part=play]").click()
        rest = tab.evaluate(seen)
        tab.wait_for_timeout(300)
        assert tab.evaluate(seen) == rest
    context.close()


@pytest.mark.parametrize("name", ["intro", *PLAYED])
def test_a_page_loads_only_the_playgrounds_it_shows_and_is_light(browser, address, site, name):
    loaded = set()
    with opened(browser, address, "light") as tab:
        tab.on("request", lambda request: loaded.add(request.url.removeprefix(address)))
        visit(tab, f"book/{name}")
        waiting = "figure.playground:not([data-ready])"
        until(tab, f"() => !document.querySelector('{waiting}')")
    shown = PLAYED.get(name, ["hero"])
    files = [Path(path) for path in loaded if "/playground/" in path]
    assert sorted(path.stem for path in files if path.suffix == ".json") == sorted(shown)
    assert sum((site / path).stat().st_size for path in files) < 150_000


# What a reader sees of a playground: its canvases, its sentence, and what its controls show.
SEEN = """figure => JSON.stringify([
    ...[...figure.querySelectorAll("canvas")].map(canvas => canvas.toDataURL()),
    ...[...figure.querySelectorAll("input, select")].map(control => control.value),
    figure.querySelector("[data-part=says]").innerText])"""
MOVES = {"range": ("ArrowLeft", "ArrowRight"), "select-one": ("ArrowDown", "ArrowUp")}


@pytest.mark.parametrize("name", [name for names in PLAYED.values() for name in names])
def test_the_keyboard_reaches_every_control_and_each_of_them_acts(browser, address, name):
    with opened(browser, address, "light", reduced_motion="reduce") as tab:
        play(tab, name)
        parts_of(tab, name)
        figure = tab.locator(f"[data-playground={name}]")
        controls = figure.locator("input, select, button, canvas[tabindex]").all()
        assert len(controls) >= 3
        controls[0].focus()
        for control in controls:
            assert control.evaluate("control => control == document.activeElement")
            before = figure.evaluate(SEEN)
            kind = control.evaluate("control => control.type ?? 'canvas'")
            keys = MOVES.get(kind, ("Enter",) if kind == "button" else ("ArrowUp", "ArrowDown"))
            for key in keys:
                if figure.evaluate(SEEN) == before:
                    tab.keyboard.press(key)
                    tab.wait_for_timeout(100)
            assert figure.evaluate(SEEN) != before
            tab.keyboard.press("Tab")
        assert not figure.evaluate("figure => figure.contains(document.activeElement)")


def test_every_playground_has_its_page():
    assert sorted(sum(PLAYED.values(), ["hero"])) == sorted(playgrounds.PLAYGROUNDS)


# --- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PAGES, "genindex", "search"])
def test_a_page_is_light_has_a_policy_and_ids_of_its_own(site, name):
    path = site / f"{name}.html"
    assert path.stat().st_size < (300_000 if name.startswith("book/api") else chapters.MAX_BYTES)
    soup = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    (policy,) = soup.select("meta[http-equiv=Content-Security-Policy]")
    assert "default-src 'self' file:;" in str(policy["content"])
    ids = Counter(str(element["id"]) for element in soup.find_all(id=True))
    assert [id for id, count in ids.items() if count > 1] == []
    assert soup.select("summary p, a[href^=http]:not([rel])") == []


@functools.cache
def links_and_anchors(path: Path) -> tuple[list[str], set[str]]:
    """The targets of all links of a page, and its ids."""
    soup = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    targets = [str(link["href"]) for link in soup.find_all("a", href=True)]
    return targets, {str(element["id"]) for element in soup.find_all(id=True)}


def links(site: Path, name: str) -> list[str]:
    """The targets of all links of a page."""
    return links_and_anchors(site / f"{name}.html")[0]


def anchors(path: Path) -> set[str]:
    """The ids of a page."""
    return links_and_anchors(path)[1]


@pytest.mark.parametrize("name", [*PAGES, "index", "genindex", "search"])
def test_internal_links_lead_somewhere(site, name):
    broken = []
    for link in links(site, name):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        page = site / f"{name}.html"
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.is_file() or (
            target.suffix == ".html"
            and parts.fragment
            and unquote(parts.fragment) not in anchors(target)
        ):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", [f"book/{chapter.name}" for chapter in chapters.all_chapters()])
def test_links_call_a_figure_by_the_number_of_its_caption(site, name):
    soup = BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")
    told = [(str(link["href"])[1:], link.text) for link in soup.select("p a[href^='#fig-']")]
    captions = {str(f["id"]): f for f in soup.select("figure[id]")}
    told = [(place, text) for place, text in told if text != "#"]
    notebook = chapters.read_notebook(chapters.Chapter(name.removeprefix("book/")))
    written = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(told) == written.count("](#fig-")
    for place, text in told:
        number = captions[place].select_one(".caption-number")
        assert number is not None
        assert number.text.strip() == text


def test_the_scoreboard_shows_every_claim_and_what_the_results_cost(site):
    text = BeautifulSoup((site / "book/scoreboard.html").read_text("utf-8"), "html.parser").text
    for chapter in chapters.all_chapters():
        assert [claim["id"] for claim in chapter.claims if claim["id"] not in text] == []
        assert chapter.execution["processor"] in text
    assert "stored results took" in text


def test_a_reader_picks_rows_of_the_scoreboard(page):
    visit(page, "book/scoreboard")
    shown = "details.claim-rows tbody tr:not([hidden])"
    page.locator("#row-chapter").select_option("7")
    (chapter,) = chapters.find_chapters(["07_ot_flow"])
    rows = chapter.claims
    assert page.locator(shown).count() == len(rows)
    for kind in ("claim", "finding", "measurement"):
        page.locator("#row-kind").select_option(kind)
        wanted = [row for row in rows if row["kind"] == kind]
        assert page.locator(shown).count() == len(wanted) > 0
    page.locator("#row-kind").select_option("claim")
    page.locator("#row-verdict").select_option("supported")
    wanted = [row for row in rows if (row["kind"], row["verdict"]) == ("claim", "supported")]
    assert page.locator(shown).count() == len(wanted) > 0
    page.locator("#row-text").fill("no row has this text")
    assert page.locator(shown).count() == 0


def test_every_page_says_what_it_is_about_and_where_it_lives(site):
    said, title = {}, yaml.safe_load((chapters.ROOT / "_config.yml").read_text())["title"]
    for name in PAGES:
        soup = BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")
        tags = {
            tag.get("name") or tag.get("property"): tag["content"]
            for tag in soup("meta", content=True)
        }
        said[name] = tags["description"]
        assert 50 < len(tags["description"]) <= 160
        assert tags["og:description"] == tags["description"]
        assert re.search(r" [,)]| \.(?!\w)|\( ", tags["description"]) is None  # no word is left out
        assert tags["og:title"].endswith(title)
        assert "<" not in tags["og:title"]
        assert tags["og:image"] == f"{SITE}/_static/card.png"
        (canonical,) = soup.find_all("link", rel="canonical")
        assert canonical["href"] == tags["og:url"] == f"{SITE}/{name}.html"
        assert (
            len(soup.find_all("meta", attrs={"name": "viewport"})) <= 2
        )  # one of Sphinx, one of the theme
        assert ctdl_lib.__version__ in soup.find(class_="extra_footer").text
    assert len(set(said.values())) == len(said)
    assert (site / "_static" / "card.png").is_file()
    listed = ElementTree.parse(site / "sitemap.xml").getroot()
    assert {f"{SITE}/{name}.html" for name in PAGES} <= {page[0].text for page in listed}


@pytest.mark.parametrize("chapter", chapters.all_chapters(), ids=lambda c: c.name)
def test_a_lecture_says_how_long_it_is_and_where_its_evidence_and_playground_are(site, chapter):
    html = (site / f"book/{chapter.name}.html").read_text("utf-8")
    (head,) = BeautifulSoup(html, "html.parser").select("h1 + .chapter-head")
    minutes = re.match(r"About (\d+) minutes", head.text.strip())
    assert minutes
    assert 3 < int(minutes[1]) < 30
    found = {str(link["href"]) for link in head.find_all("a")}
    assert (f"evidence/{chapter.stem}.html" in found) == (chapter.evidence is not None)
    played = chapter.name[:2] in ("01", "02", "03", "06", "07", "09", "10", "12", "14", "15")
    assert any(link.startswith("play_") for link in found) == played


def test_the_map_shows_every_chapter_with_a_picture(site):
    html = (site / "book/intro.html").read_text("utf-8")
    cards = BeautifulSoup(html, "html.parser").select("ul.chapter-map > li")
    shown = [(card.a["href"], card.img["src"]) for card in cards if card.a and card.img]
    names = [chapter.name for chapter in chapters.all_chapters()]
    assert shown == [(f"{name}.html", f"../_static/map/{name}.webp") for name in names]
    assert sum(path.stat().st_size for path in (site / "_static/map").iterdir()) < 80_000


def test_terms_are_marked_once_a_lecture_and_lead_to_the_glossary(site):
    for chapter in chapters.all_chapters():
        soup = BeautifulSoup((site / f"book/{chapter.name}.html").read_text("utf-8"), "html.parser")
        terms = soup.select("a.term")
        assert terms
        targets = [str(term["href"]) for term in terms]
        assert len(set(targets)) == len(targets)
        words = {(term.text, int(chapter.name[:2])) for term in terms}
        assert words.isdisjoint({("priors", 11), ("velocity", 14)})  # which are others there
        for term in terms:
            assert term.find_parent(["h1", "h2", "h3", "code", "pre", "figure"]) is None
            (says,) = soup.select(f"#{term['aria-describedby']}[role=tooltip]")
            assert says.text.endswith(".")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_colab_and_binder_open_a_notebook_of_the_repository(site, name):
    assert [link for link in links(site, name) if "colab" in link] == [f"{COLAB}{name}.ipynb"]
    assert [link for link in links(site, name) if "binder" in link] == [f"{BINDER}{name}.ipynb"]
    assert kept_by_git(f"{name}.ipynb")


def kept_by_git(path: str) -> bool:
    """Whether a file is in the repository or will be with the next commit: not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", path]
    listed = subprocess.run(command, cwd=chapters.ROOT, capture_output=True, text=True)
    if listed.returncode != 0:  # an archive of the repository has no history
        return (chapters.ROOT / path).is_file()
    return listed.stdout.split() == [path]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_download_is_the_committed_notebook_and_a_cell_that_finds_its_imports(site, name):
    downloads = [
        link for link in links(site, name) if link.endswith(".ipynb") and "://" not in link
    ]
    assert len(downloads) == 1
    downloaded = nbformat.read((site / f"{name}.html").parent / downloads[0], as_version=4)
    first = downloaded.cells.pop(1)
    assert f"git clone --depth 1 {REPOSITORY} ctdl && pip install" in first.source
    assert downloaded == nbformat.read(chapters.ROOT / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", PAGES)
def test_links_to_the_repository_go_to_the_given_one(site, name):
    hosts = [link for link in links(site, name) if "github.com" in link]
    assert hosts
    assert [link for link in hosts if not link.startswith((REPOSITORY, COLAB))] == []


# --- slides and print ---------------------------------------------------------------------------


def test_slides_are_one_file_without_network_that_moves_by_keys(site, browser, tmp_path):
    path = tmp_path / "slides.html"
    path.write_text(slides.deck(site, "book/07_ot_flow"), "utf-8")
    viewport: Any = {"width": 1280, "height": 720}
    with opened(browser, path.as_uri(), "light", offline=True, viewport=viewport) as tab:
        tab.goto(path.as_uri())
        tab.evaluate("() => MathJax.startup.promise")
        count = tab.locator("main section").count()
        assert 10 <= count <= 25
        assert untyped_formulas(tab) == []
        assert tab.evaluate(LOADED)
        (lecture,) = chapters.find_chapters(["07"])
        names = [
            cell.metadata.mystnb.figure.name
            for cell in chapters.code_cells(chapters.read_notebook(lecture))
            if "figure" in cell.metadata.get("mystnb", {})
        ]
        assert tab.locator("main figure.diagram svg").count() == 1
        figures = tab.locator("main figure[id]:not(.diagram)")
        assert figures.evaluate_all("all => all.map(figure => figure.id)") == names
        heights = figures.locator("img").evaluate_all("all => all.map(i => i.clientHeight)")
        assert min(heights) > 150
        assert "Exercise" not in tab.content()
        cut = "() => [...document.querySelectorAll('section > div')].filter(tooLarge).length"
        assert tab.evaluate(cut) == 0
        # by keys, by an address and by a button
        place, shown = tab.locator("#place"), tab.locator("main section.shown")
        for key, number in (("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 1), ("End", count)):
            tab.keyboard.press(key)
            assert place.inner_text() == f"{number} / {count}"
            assert shown.count() == 1
        tab.evaluate("name => { location.hash = name }", names[1])
        until(tab, "() => document.querySelector('.shown figure#fig-otf-exact')")
        tab.get_by_label("next slide").click()
        assert not shown.locator("aside").is_visible()
        tab.keyboard.press("s")
        assert shown.locator("aside").is_visible()


def test_print_has_all_of_a_chapter_on_pages_that_its_contents_name(site, browser, tmp_path):
    page, pdf = tmp_path / "book.html", tmp_path / "book.pdf"
    parts = [("Part", ["book/07_ot_flow"]), ("Appendix", ["book/references"])]
    page.write_text(printing.book(site, parts), "utf-8")
    with ThreadPoolExecutor(1) as pool:  # playwright runs once in a thread
        pool.submit(printing.print_page, page, pdf).result()
    printed = pdf.read_bytes()
    count, places = len(printing.PAGE.findall(printed)), printing.page_numbers(printed)
    assert 10 <= count <= 30
    targets = {name.decode() for name in re.findall(rb"/Dest /(\S+?)[\s>]", printed)}
    assert {"07_ot_flow--exercises", "07_ot_flow--equation-eq-otf-hjb"} <= targets
    assert {"references--onken2021otflow"} <= targets <= set(places)
    order = [places[f"07_ot_flow--{name}"] for name in ("ot-flow", "train-it", "exercises")]
    assert 2 < order[0] < order[1] < order[2] < places["references--references"] <= count
    # what is printed: nothing wider than a page, and no formula that MathJax cannot read
    viewport: Any = {"width": 643, "height": 900}  # of A4 between its margins
    with opened(browser, "file:///", "light", viewport=viewport) as tab:
        tab.emulate_media(media="print")
        tab.goto(page.as_uri())
        tab.evaluate("() => MathJax.startup.promise")
        assert untyped_formulas(tab) == []
        assert tab.evaluate(LOADED)
        wide = "pre, table, img, mjx-container[display=true]"
        assert tab.locator(wide).evaluate_all(WIDER) == []
        assert tab.locator("figure img").count() >= 5
        assert tab.locator("details, button, .headerlink").count() == 0


WIDER = """all => all.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth ||
    e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"""
