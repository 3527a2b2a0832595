"""Kernels that begin with torch imported, so that a test run waits for its import only once.

After `use()`, every kernel that this process starts is forked from a server, which has done nothing
but import what takes long. Each kernel is still a process of its own.
"""

import multiprocessing
import os
import sys
from importlib.metadata import EntryPoint
from multiprocessing.process import BaseProcess

from jupyter_client.provisioning import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

IMPORTED = ["torch", "torchdiffeq", "scipy.optimize", "jaxtyping", "safetensors.torch"]
IMPORTED += ["ipykernel.kernelapp", "matplotlib.figure"]
NAME = "forked"
INLINE = "module://matplotlib_inline.backend_inline"


def use() -> None:
    """Fork all kernels that this process starts from now on, where a fork is safe."""
    if sys.platform != "linux":
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
    module, name = Forked.__module__, Forked.__qualname__
    point = EntryPoint(NAME, f"{module}:{name}", KernelProvisionerFactory.GROUP_NAME)
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[NAME] = point
    factory.default_provisioner_name = NAME


class Forked(LocalProvisioner):
    """Starts a kernel by a fork of the server."""

    async def launch_kernel(self, cmd, **kwargs):
        """The connection to a new kernel, as the command `cmd` would start it."""
        start = cmd.index("ipykernel_launcher")
        process = multiprocessing.get_context("forkserver").Process(
            target=kernel, args=(cmd[start + 1 :], kwargs["env"], kwargs.get("cwd"))
        )
        process.start()
        self.process = Handle(process)
        self.pid = self.pgid = process.pid
        return self.connection_info


class Handle:
    """A process with the methods of `subprocess.Popen` that a provisioner calls."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess):
        self.process = process

    def poll(self):
        """The exit status, None while it runs."""
        return self.process.exitcode

    def wait(self):
        """The exit status, once there is one."""
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        """Send it to the process alone."""
        os.kill(self.process.pid, number)

    def kill(self):
        """End it at once."""
        self.process.kill()

    def terminate(self):
        """Ask it to end."""
        self.process.terminate()


def kernel(arguments: list[str], environment: dict[str, str], cwd: str | None) -> None:
    """Be a kernel until told to stop."""
    os.setsid()  # what the kernel starts is stopped with it
    os.environ.clear()
    # A kernel ends when its parent does, which is the server.
    os.environ.update(environment | {"JPY_PARENT_PID": str(os.getppid())})
    os.chdir(cwd or ".")
    here = os.path.dirname(__file__)
    extra = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = ["", *extra, *(path for path in sys.path if path not in ("", here))]

    import matplotlib
    from ipykernel import kernelapp

    # It was imported without this environment, and before ipykernel could name its own backend.
    matplotlib.rcParams["backend"] = environment.get("MPLBACKEND", INLINE)
    kernelapp.launch_new_instance(argv=arguments)
