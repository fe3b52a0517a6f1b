"""PyKMIP, as strict as other KMIP servers are: no AES keys of 512 bits, and no key before it is active or after.

A file that TRAP names may say "OPERATION N": the N-th such operation then waits, with a file "reached" beside it, until the
first file is gone, and does nothing."""

import collections
import os
import time

from kmip.core import enums, exceptions
from kmip.services.server import engine, monitor, server


def stricter(name, check):
    lenient = getattr(engine.KmipEngine, name)

    def strict(self, payload):
        check(self, payload)
        return lenient(self, payload)

    setattr(engine.KmipEngine, name, strict)


def length(self, payload):
    for attribute in payload.template_attribute.attributes:
        if attribute.attribute_name.value == "Cryptographic Length" and attribute.attribute_value.value > 256:
            raise exceptions.InvalidField("AES keys have 128, 192 or 256 bits.")


def state(self, payload):
    found = self._get_object_with_access_controls(payload.unique_identifier, enums.Operation.GET)
    if getattr(found, "state", enums.State.ACTIVE) != enums.State.ACTIVE:
        raise exceptions.PermissionDenied("The key is not active.")


counts = collections.Counter()


def trap(operation):
    def check(self, payload):
        counts[operation] += 1
        path = os.environ["TRAP"]
        if not os.path.exists(path) or open(path).read() != f"{operation} {counts[operation]}":
            return
        open(os.path.join(os.path.dirname(path), "reached"), "w").close()
        while os.path.exists(path):
            time.sleep(0.01)
        raise exceptions.KmipError(message="Whoever asked is gone.")

    return check


def start(self):
    """Reads the policies before the server listens; PyKMIP does so a second later, and refuses what they allow until then."""
    self.scan_policies()
    super(monitor.PolicyDirectoryMonitor, self).start()


monitor.PolicyDirectoryMonitor.start = start
monitor.PolicyDirectoryMonitor.run = lambda self: self.halt_trigger.wait()
stricter("_process_create", trap("create"))
stricter("_process_create", length)
stricter("_process_register", length)
stricter("_process_get", state)
stricter("_process_destroy", trap("destroy"))
server.main()
