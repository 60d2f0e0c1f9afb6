"""Run the GPU benchmarks, print tables of the results, and save the numbers as JSON.

Exits with code 2, and measures nothing, if PyTorch can't use the device, and with code 1 if a workload fails.
"""

import os
import sys
import time
from importlib import import_module

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from benchmarks.command_line import make_console, make_parser, write_numbers
from benchmarks.report import as_json, describe_machine, make_tables, measure_case

NO_DEVICE = 2


def main(argv=None):
    parser = make_parser(
        "benchmarks.gpu", __doc__, WORKLOADS, rounds=3, path=".cache/bench-gpu.json"
    )
    parser.add_argument("--device", default="cuda", help="a PyTorch device; default: cuda")
    parser.add_argument("--tiny", action="store_true", help="few elements and small models")
    args = parser.parse_args(argv)
    console = make_console()
    if problem := find_problem(args.device):
        console.print(f"{problem} Nothing was measured.", soft_wrap=True)
        return NO_DEVICE

    measured, failed = [], []
    for name in args.only or WORKLOADS:
        try:
            for case in make_cases(name, args.device, args.tiny):
                measured.append(measure_case(case, args.rounds, time.perf_counter, console))
        except Exception:  # keep the numbers of the other workloads
            console.print_exception()
            failed.append(name)
    measured = [*map(as_json, measured)]
    for table in make_tables(measured, {}):
        console.print(table)
    save_numbers(args.json, measured, args)
    console.print(f"Numbers: {args.json}", soft_wrap=True)
    if failed:
        console.print(f"Failed: {', '.join(failed)}. The errors are above.")
    return 1 if failed else 0


def find_problem(device):
    """Return why PyTorch can't use a device, or None."""
    try:
        import torch
    except ModuleNotFoundError:
        return "PyTorch is not installed."
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return (
            f"PyTorch {torch.__version__} finds no CUDA device (CUDA of its build: {torch.version.cuda}). "
            "To fix this, install a GPU driver and a build of PyTorch with CUDA, or pass another --device."
        )
    return None


def make_cases(name, device, tiny):
    """Return the cases of a workload."""
    from benchmarks.gpu.setup import Setup

    module, function = WORKLOADS[name].split(".")
    return getattr(import_module(f"benchmarks.gpu.{module}"), function)(Setup(device, tiny))


#: For each workload, the module and the function of its cases.
WORKLOADS = {
    "images": "tensors.image_cases",
    "tokens": "texts.token_cases",
    "embeddings": "texts.embedding_cases",
    "pipeline": "texts.pipeline_cases",
    "rows": "tensors.row_cases",
}


def save_numbers(path, measured, args):
    """Write the numbers with the machine and its device."""
    import torch

    is_cuda = torch.device(args.device).type == "cuda"
    name = torch.cuda.get_device_name(args.device) if is_cuda else args.device
    write_numbers(path, {**describe_machine(), "device": name, "cases": measured})


if __name__ == "__main__":
    sys.exit(main())
