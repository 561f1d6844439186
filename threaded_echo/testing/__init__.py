"""What the pytest fixture ``threaded_server`` gives to a test: `ServerFactory`, `Recorder` and `HANG_UP`."""
from .recording import HANG_UP, Recorder
from .servers import ServerFactory

__all__ = ["HANG_UP", "Recorder", "ServerFactory"]
