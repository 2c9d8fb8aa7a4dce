"""The table of all checks, with what each claims and what to do where it does not hold. Floor: doctor.

Every check makes what it needs (seeded models of two layers; no file, no network), knows its answer beforehand from plain
products, PEFT, transformers or published numbers, and is independent of the others: one that raises has failed.
"""

from __future__ import annotations

from lorascope.doctor import arithmetic, exchange, machine, own_base, studies
from lorascope.doctor.finding import Check
from lorascope.doctor.versions import VERSIONS

_REINSTALL = (
    "results cannot be trusted: install the locked versions anew (make clean, then make setup); "
    "if it stays, report what lorascope doctor --json prints"
)
_PEFT = f"adapters made here may differ elsewhere: pip install 'peft>=0.21' first; {_REINSTALL}"

CHECKS: tuple[Check, ...] = (
    VERSIONS,
    Check("frozen base", "no base weight takes a gradient or changes a bit", arithmetic.frozen_base, _REINSTALL),
    Check("gradients", "only a slot's own adapters have a gradient", arithmetic.gradients_in_adapters, _REINSTALL),
    Check("forward", "outputs are those of W + (alpha / r)·B·A", arithmetic.forward, _REINSTALL),
    Check("backward", "gradients are those of W + (alpha / r)·B·A", arithmetic.backward, _REINSTALL),
    Check("loss falls", "what can be learned is learned", arithmetic.loss_falls, _REINSTALL),
    Check("parameter counts", "GPT-2's published counts come out exactly", arithmetic.parameter_counts, _REINSTALL),
    Check("prefix trees", "sharing prefixes changes no loss and no gradient", arithmetic.prefix_trees, _REINSTALL),
    Check("neighbours", "a slot's result does not depend on the others", arithmetic.neighbours, _REINSTALL),
    Check("save and load", "an adapter read back is the one that was written", exchange.save_and_load, _REINSTALL),
    Check("merge", "merged weights give the adapter's outputs", exchange.merge, _REINSTALL),
    Check("PEFT reads it", "PEFT gives our logits with our adapter", exchange.peft_reads, _PEFT),
    Check("PEFT trains so", "a training equals PEFT's, step by step", exchange.peft_trajectory, _PEFT),
    Check("decoding", "greedy answers are those of transformers' generate", studies.decoding, _REINSTALL),
    Check(
        "resume",
        "a killed study ends with the bits of one left alone",
        studies.resume,
        f"let studies run to their end until this is solved; {_REINSTALL}",
    ),
    Check(
        "4 bits",
        "NF4's values come back as they were packed",
        machine.quantisation,
        "pip install --force-reinstall 'lorascope[quant]', and leave base.quantization out until this passes",
    ),
    Check(
        "kernels",
        "float32 products are exact, by as many threads as fit",
        machine.kernels,
        "unset what lowers precision (NVIDIA_TF32_OVERRIDE, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, ONEDNN_DEFAULT_FPMATH_MODE)",
    ),
    Check(
        "memory",
        "there is enough, and what a step takes is measured",
        machine.memory,
        "close other programs, or give the container more; lorascope plan says what a study needs",
    ),
    Check(
        "disk",
        "files here appear whole or not at all",
        machine.disk,
        "work in a directory on a local disk that you can write, or give one with --out",
    ),
    Check(
        "GPU",
        "its products are the processor's",
        machine.cuda,
        "use --device cpu, which leaves it alone; check the driver, and unset NVIDIA_TF32_OVERRIDE and "
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    ),
)
_BASE = "the base cannot be used as it is: check its files, and that they belong together"
OWN_BASE: tuple[Check, ...] = (
    Check("base: loads", "configuration, tokenizer and weights are read", own_base.loads, _BASE),
    Check("base: tokenizer", "a text comes back from its tokens", own_base.encodes, _BASE),
    Check("base: targets", "its projections are found", own_base.resolves, "name modules in adapter.targets"),
    Check("base: outputs", "outputs are finite, and padding changes none", own_base.outputs, _BASE),
    Check("base: frozen", "two training steps change no base weight", own_base.stays_frozen, _REINSTALL),
    Check("base: prefix trees", "shared prefixes are stored once", own_base.shares_prefixes, _REINSTALL),
    Check("base: PEFT", "PEFT gives our logits on it", own_base.peft_agrees, _PEFT),
)


def checks_for(model: str | None) -> tuple[Check, ...]:
    """All checks, those of the user's own base last and only where there is one."""
    return CHECKS if model is None else (*CHECKS, *OWN_BASE)
