"""Serves Keystone or Barbican on a port of loopback, until standard input ends; then FOLDER goes as well.

usage: serve_openstack.py keystone|barbican FOLDER PORT
"""

import os
import shutil
import sys
import threading

service, folder, port = sys.argv[1:]


def end_with_parent():
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


threading.Thread(target=end_with_parent, daemon=True).start()

# Keystone reads the arguments of whatever process it is in.
sys.argv = [service]
if service == "keystone":
    os.environ["OS_KEYSTONE_CONFIG_FILES"] = os.path.join(folder, "keystone.conf")
    from keystone.wsgi.api import application
else:
    # Where oslo.config looks: $HOME/.barbican/barbican.conf.
    os.environ["HOME"] = folder
    from paste import deploy

    application = deploy.loadapp("config:" + os.path.join(sys.prefix, "etc/barbican/barbican-api-paste.ini"))

import waitress

# One request at a time: SQLite lets one writer in, and Barbican registers its policies on the first request.
waitress.serve(application, host="127.0.0.1", port=int(port), threads=1)
