"""A server that fails in a given mode. It is run as a command: ``local_server_program.py PORT MODE [FILE]``."""

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, mode = int(sys.argv[1]), sys.argv[2]
file = sys.argv[3] if len(sys.argv) > 3 else ""


def first_time():
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(503 if mode == "unhealthy" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "crash" in json.dumps(body) and (mode == "crash" or first_time()):
            print("crashing now", flush=True)
            os._exit(3)
        answer = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "child": child.pid if child else None,
            "variable": os.environ.get("VARIABLE"),
        }
        message = {"role": "assistant", "content": json.dumps(answer)}
        content = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


child = None
if mode == "exit":
    print("loading\rloading 50 %\nno such model", flush=True)
    sys.exit(7)
if mode == "port taken":
    with open(file, "a") as log:
        log.write("x")
    sys.exit("OSError: [Errno 98] Address already in use")
if mode == "child":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
print("listening", flush=True)
ThreadingHTTPServer(("127.0.0.1", port if mode != "elsewhere" else 0), Handler).serve_forever()
