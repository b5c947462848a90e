"""Published checkpoints of PyTorch, read without PyTorch and without executing anything."""

from jaxrec.interop import gsasrec, recbole, rectools, s3rec, sasrec_pytorch
from jaxrec.interop.formats import FORMATS, CheckpointFormat, ImportedModel, ImportOptions, Reader
from jaxrec.interop.importing import ImportReport, import_checkpoint, read_model
from jaxrec.interop.torch_files import TorchFile, read_torch_file

__all__ = [
    "FORMATS",
    "CheckpointFormat",
    "ImportOptions",
    "ImportReport",
    "ImportedModel",
    "Reader",
    "TorchFile",
    "gsasrec",
    "import_checkpoint",
    "read_model",
    "read_torch_file",
    "recbole",
    "rectools",
    "s3rec",
    "sasrec_pytorch",
]
