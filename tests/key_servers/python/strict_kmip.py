"""PyKMIP, as strict as other KMIP servers are: no AES keys of 512 bits, and no key before it is active or after."""

from kmip.core import enums, exceptions
from kmip.services.server import engine, server


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


stricter("_process_create", length)
stricter("_process_register", length)
stricter("_process_get", state)
server.main()
