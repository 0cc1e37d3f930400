"""An export from top to bottom: open, ask, merge, write, read back, compare; the folder appears when all of it is done."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

from fitune.adapters.adapter_folder import load_tokenizer_of, read_facts
from fitune.adapters.locate import Facts
from fitune.console import json_text, log, warn
from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target, allowances, base_of, find_target, open_target
from fitune.exporting.calibration import read_calibration
from fitune.exporting.convertible import find_form, refuse_unconvertible
from fitune.exporting.fidelity import Probe, Report, Row, compare, compare_logits, make_probe, same_ids, same_prompts
from fitune.exporting.forms.export_form import Exportable, ExportForm, ExportJob, Reopened
from fitune.exporting.merge_weights import merge, settle
from fitune.exporting.new_folder import new_folder, refuse_taken
from fitune.exporting.probe_prompts import choose_prompts, run_of
from fitune.models.hardware import DTYPES, detect
from fitune.models.load_base import build_on_meta
from fitune.models.load_config import load_config
from fitune.models.quantization.quantize import QuantizationConfig
from fitune.models.source import ModelSource, resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer
from fitune.runs.disk_space import folder_bytes, size

REPORT = "fidelity.json"
# Beside the weights: logits of the probe, activations of one prompt, Python itself.
SPARE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Exported:
    """What an export left: its folder, the file or folder to hand on, bytes, and how faithful it is."""

    folder: Path
    main: Path
    num_bytes: int
    report: Report


def export(
    name: str,
    to: str,
    out: Path | None = None,
    *,
    gguf_type: str = "f16",
    base_name: str | None = None,
    num_prompts: int = 20,
    prompts_file: str | None = None,
    importance: str | None = None,
    device: str = "auto",
    runs_folder: str = "runs",
    allow_pickled: bool = False,
) -> Exported:
    """Write a copy of a run's result, an adapter or a model, and measure it.

    Args:
        name: a run (name or folder), an adapter folder, or a model.
        to: a key of EXPORT_FORMS.
        out: a folder that is not there yet; None takes `export/FORM` in the run's folder.
        gguf_type: a key of GGUF_TYPES, for the forms that take one.
        base_name: where the adapter's 16-bit base is now, when it is not where the adapter says.
        num_prompts: prompts that are asked of every copy.
        importance: what an importance matrix for the quantization is measured on: "run", the run's training rows, or a
            data file; None quantizes without one.
        allow_pickled: take pickled weights of a model that has no others.

    Raises:
        RunError: the folder is taken, or the disk has no room.
        ModelError: no such form, the base cannot be had, or the model cannot be converted.
    """
    form = find_form(to, gguf_type)
    found = find_target(name, runs_folder)
    title, out = _title(name, found), _out(name, found, form.variant(gguf_type), out)
    refuse_taken(out)
    source, facts = _origin(name, found, base_name, allow_pickled)
    _refuse(name, form, source, facts, found, gguf_type, importance)
    precision = _arithmetic(source, device)
    log(f"opening {name}")
    trained = open_target(name, runs_folder, device, precision, base_name, allow_pickled=allow_pickled)
    run = run_of(found) if found else None
    conversations = choose_prompts(run, trained.renderer, num_prompts, prompts_file)
    calibration = read_calibration(importance, run, trained.renderer) if importance else None
    log(f"asking {len(conversations)} prompts")
    probe = make_probe(trained.model, trained.renderer, conversations)
    whole, rows = _sixteen_bit_base(trained, name, probe, runs_folder, device, precision, base_name)
    del trained
    if form.merges:
        whole = merge(whole)
        settle(whole.plain_model)
        if found is not None and (found / "adapter_config.json").exists():
            rows.append(compare(probe, whole.model, "merged", "16-bit"))
    with new_folder(out) as folder:
        job = ExportJob(
            target=whole, folder=folder, title=title, gguf_type=gguf_type, adapter=found, importance=calibration
        )
        main = form.write(job)
        log("reading the copy back")
        copy = form.reopen(job, main, precision, device)
        del whole, job
        gc.collect()
        stored = gguf_type if form.takes_gguf_type else form.name
        measured = _measure(probe, copy, f"exported, {stored}", form.loss_of(gguf_type))
        report = Report(
            reference=_reference(found),
            arithmetic=precision,
            prompts=len(probe.prompts),
            tokens=sum(len(answer) for answer in probe.answers),
            rows=(*rows, *measured.rows),
            prompts_same=measured.prompts_same,
            first_difference=measured.first_difference,
            notes=measured.notes,
            faults=measured.faults,
        )
        (folder / REPORT).write_text(json_text(report.to_dict(), indent=2) + "\n", "utf-8")
        num_bytes, relative = folder_bytes(folder), main.relative_to(folder)
    for text in report.warnings():
        warn(text)
    log(f"exported to {out} ({size(num_bytes)})")
    return Exported(out, out / relative, num_bytes, report)


@dataclass(frozen=True)
class _Measured:
    """A copy against the probe, as in `Report`."""

    rows: tuple[Row, ...]
    prompts_same: int | None
    first_difference: str | None
    notes: tuple[str, ...]
    faults: tuple[str, ...] = ()


def _measure(probe: Probe, copy: Reopened, words: str, loss: str) -> _Measured:
    """Whatever the copy can be asked."""
    if copy.ask is None:
        rows = (compare(probe, copy.model, words, loss),) if copy.model is not None else ()
        same, first = same_prompts(probe, copy.tokenizer) if copy.tokenizer is not None else (None, None)
        return _Measured(rows=rows, prompts_same=same, first_difference=first, notes=copy.notes)
    said = copy.ask(probe)
    rows = (compare_logits(probe, said.logits_TV, words, loss),) if said.logits_TV is not None else ()
    same, first = same_ids(probe, said.prompts) if said.prompts is not None else (None, None)
    return _Measured(
        rows=rows, prompts_same=same, first_difference=first, notes=(*copy.notes, *said.notes), faults=said.faults
    )


def _out(name: str, found: Path | None, variant: str, out: Path | None) -> Path:
    """The folder to make: as asked, or `export/FORM` in the run, or beside an adapter."""
    if out is not None:
        if out.suffix == ".gguf":
            raise ModelError(f"--out {out} names a file, and an export is a folder (the file, its report); drop .gguf")
        return out
    if found is not None:
        return found.parent / "export" / variant if run_of(found) else found.parent / f"{found.name}-{variant}"
    return Path(f"{Path(name).name}-{variant}")


def _title(name: str, found: Path | None) -> str:
    """What the model is called in file names."""
    if found is None:
        return Path(name).stem
    return found.resolve().parent.name if found.name in ("adapter", "model") else found.resolve().name


def _origin(
    name: str, found: Path | None, base_name: str | None, allow_pickled: bool
) -> tuple[ModelSource, Facts | None]:
    """Where the (base) model's weights are, and what the adapter's folder says of itself."""
    if found is None or not (found / "adapter_config.json").exists():
        if base_name is not None:
            raise ModelError(f"--base is for an adapter, and {name} is a whole model")
        return resolve(str(found) if found else name, allow_pickled=allow_pickled), None
    facts = read_facts(found)
    return base_of(found, facts["base"], base_name, allowances(found, allow_pickled)[1]), facts


def _refuse(
    name: str,
    form: ExportForm,
    source: ModelSource,
    facts: Facts | None,
    found: Path | None,
    gguf_type: str,
    importance: str | None,
) -> None:
    """Everything that can be known to fail before a weight is loaded; raises ModelError."""
    tokenizer = (load_tokenizer_of(found) if found and facts else None) or load_tokenizer(source)
    model = Exportable(
        name=name,
        base_name=source.name,
        config=load_config(source),
        tokenizer=tokenizer,
        template=resolve_template(tokenizer),
        has_adapter=bool(facts),
        init=facts.get("init", "default") if facts else "default",
        gguf_type=gguf_type if form.takes_gguf_type else "f16",
        importance=importance is not None,
    )
    refuse_unconvertible([form.name], model)


def _arithmetic(source: ModelSource, device: str) -> str:
    """fp32 where the whole model fits twice in that (a copy is read back beside it), else 16 bits.

    In fp32 the differences that are measured are those of the weights alone.
    """
    free = detect(device).free_bytes
    if 2 * 4 * build_on_meta(load_config(source), DTYPES["fp32"]).num_parameters() + SPARE_BYTES < free:
        return "fp32"
    log(
        "the model does not fit twice in fp32: copies are compared in 16 bits, whose own rounding is part of the figures"
    )
    return "auto"


def _sixteen_bit_base(
    trained: Target, name: str, probe: Probe, runs_folder: str, device: str, precision: str, base_name: str | None
) -> tuple[Target, list[Row]]:
    """The same adapter over the base's own 16 bits, when it was trained over a quantized one; measured."""
    if trained.adapter is None or not read_facts(trained.adapter).get("quantization"):
        return trained, []
    trained.peft_model.to("cpu")
    log("opening the 16-bit base")
    whole = open_target(name, runs_folder, device, precision, base_name, as_trained=False)
    return whole, [compare(probe, whole.model, "adapter over the 16-bit base", "base")]


def _reference(found: Path | None) -> str:
    """What copies are compared with, in words."""
    if found is None:
        return "the model as it is"
    if not (found / "adapter_config.json").exists():
        return "the model as it was trained"
    quantization = read_facts(found).get("quantization")
    return (
        f"the adapter over its base{f' in {QuantizationConfig.from_dict(quantization).name}' if quantization else ''}"
    )
