"""What happened: run folders, the artifact store, events, durable files. Light: no torch, no numpy at import time."""
