"""What ends an import early. Each is one sentence that says what to do; nothing that was acknowledged is lost by it."""


class ImportStopped(Exception):
    """The import cannot begin or go on."""


class MappingFault(ImportStopped):
    """The mapping file is missing or wrong."""


class SourceFault(ImportStopped):
    """The file to import cannot be read, or is not what the mapping says."""


class GatewayFault(ImportStopped):
    """The gateway cannot be reached or does not let the import go on."""


class DiskFault(ImportStopped):
    """A file of the import (checkpoint, rejects, report) cannot be written."""
