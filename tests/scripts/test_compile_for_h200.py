"""The reading of compiled code, on fragments of what the compilers print."""

import importlib
import json

import pytest


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("compile_for.h200")


def main(*argv):
    return part("command").main(["h200", *argv])


def part(name):
    return importlib.import_module(f"compile_for.{name}")


SEQUENCE = """\
000: kCommandBuffer [source | sink]
    001: kCopy         [source | next=002 (1)] kCopy
    002: kWhile        [prev=001 (1) | next=010 (1)]
condition:
        003: kCustomKernel [source | sink] compare grid: [1, 1, 1]
      body:
        004: kWhile        [source | sink]
condition:
            005: kCustomKernel [source | sink] compare grid: [1, 1, 1]
          body:
            006: kCustomKernel [source | next=007 (1)] gemm_fusion grid: [4, 1, 1]
            007: kAsyncStart   [prev=006 (1) | sink] stream=computation_stream[0]
                008: kDynamicSliceFusion [source | sink] params=1, results=1
                    009: kCopy [source | sink] kCopy
            010: kAsyncDone    [source | sink] async_id=7
    011: kWhile        [prev=002 (1) | sink]
condition:
        012: kCustomKernel [source | sink] compare grid: [1, 1, 1]
      body:
        013: kCustomKernel [source | sink] gemm_fusion grid: [4, 1, 1]
"""

OPTIMIZED = """\
%product_computation (p: f32[64,512], q: f32[512,2048]) -> f32[4,64,2048] {
  ROOT %dot.1 = f32[4,64,2048]{2,1,0} dot(%p, %q), lhs_contracting_dims={1}
}

%steps (state: (s32[], f32[64,512])) -> (s32[], f32[64,512]) {
  %fusion.1 = f32[4,64,2048]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%product_computation
  %gemm = (f32[64,512]{1,0}, s8[0]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm"
}

%more (state: (s32[], f32[64,512])) -> pred[] {
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

%blocks (state: (s32[], f32[64,512])) -> (s32[], f32[64,512]) {
  %dot.2 = f32[1024,2048]{1,0} dot(%a, %b), lhs_contracting_dims={0}
  %while.1 = (s32[], f32[64,512]{1,0}) while(%t), condition=%more, body=%steps
}

ENTRY %main (a: f32[64,512]) -> f32[64,512] {
  %while.2 = (s32[], f32[64,512]{1,0}) while(%t), condition=%more, body=%blocks
  %dot.3 = f32[512,2048]{1,0} dot(%a, %b), lhs_contracting_dims={0}
}
"""

CODE = """\
  -:-:0:Y:01  /*0000*/                   LDC R1, c[0x0][0x28]
  -:-:-:Y:01  /*0010*/                   SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR4+0x20], RZ
  -:-:1:Y:02  /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR4+0x20], R31
  -:-:1:Y:02  /*0030*/              @!P3 BRA `(.L_x_1)
.L_x_2:
  -:-:1:Y:02  /*0040*/                   MUFU.RCP R1, R2
.L_x_3:
  -:-:1:Y:02  /*0050*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR9], R26
  -:-:1:Y:02  /*0060*/              @!P3 BRA `(.L_x_4)
.L_x_5:
  -:-:1:Y:02  /*0070*/                   HMMA.16816.F32.BF16 R52, R64.reuse, R80, R24
  -:-:1:Y:02  /*0080*/                   MUFU.EX2 R4, R4
  -:-:1:Y:02  /*0090*/                   SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR4+0x20], RZ
  -:-:1:Y:02  /*00a0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR4+0x20], R51
  -:-:1:Y:02  /*00b0*/              @!P3 BRA `(.L_x_6)
.L_x_7:
  -:-:1:Y:02  /*00c0*/               @P1 BRA `(.L_x_8)
  -:-:1:Y:02  /*00d0*/                   SYNCS.ARRIVE.TRANS64 RZ, [UR9], R42
  -:-:1:Y:02  /*00e0*/                   @UP0 UTMALDG.5D [UR8], [UR18]
.L_x_8:
  -:-:1:Y:02  /*00f0*/              @!P0 EXIT
  -:-:1:Y:02  /*0100*/                   BRA `(.L_x_3)
.L_x_1:
  -:-:1:Y:02  /*0110*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [R2+URZ+0x20], R3
  -:-:1:Y:02  /*0120*/              @!P3 BRA `(.L_x_1)
  -:-:1:Y:02  /*0130*/                   BRA `(.L_x_2)
.L_x_4:
  -:-:1:Y:02  /*0140*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [R2+URZ], R26
  -:-:1:Y:02  /*0150*/              @!P3 BRA `(.L_x_4)
  -:-:1:Y:02  /*0160*/                   BRA `(.L_x_5)
.L_x_6:
  -:-:1:Y:02  /*0170*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [R2+URZ+0x20], R51
  -:-:1:Y:02  /*0180*/              @!P3 BRA `(.L_x_6)
  -:-:1:Y:02  /*0190*/                   BRA `(.L_x_7)
.L_x_9:
  -:-:1:Y:02  /*01a0*/                   BRA `(.L_x_9)
"""

ASSEMBLER = """\
ptxas info    : Compiling entry function 'body' for 'sm_90a'
ptxas         .     16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 17 bytes smem
"""
RESOURCES = "Resources(smem_scratch_bytes=69632, tmem_scratch_cols=0)"


def test_loops_and_launches_of_a_sequence(script):
    graphs = part("graphs")
    found = graphs.measured(SEQUENCE, OPTIMIZED)
    assert found == graphs.Measured(True, 3, [2, 1], [1, 1], [])
    assert graphs.broken(found) == []


def test_a_loop_outside_the_graph_is_seen(script):
    graphs = part("graphs")
    outside = SEQUENCE.replace("    011: kWhile ", "011: kWhile ")
    found = graphs.measured(outside, OPTIMIZED)
    assert not found.one_graph and found.loops == 3
    assert graphs.broken(found) == ["no CUDA graph encloses all loops"]
    assert not graphs.in_one_graph([])


def test_products_of_the_loops_over_steps(script):
    graphs = part("graphs")
    assert sorted(graphs.products_in_step_loops(OPTIMIZED)) == [(4, 64, 2048), (64, 512)]
    summed = OPTIMIZED.replace("f32[4,64,2048]{2,1,0} dot", "f32[512,2048]{1,0} dot")
    (why,) = graphs.broken(graphs.measured(SEQUENCE, summed))
    assert why == "a product [512, 2048] of a loop sums over the batch"


def test_a_pass_through_the_loop(script):
    sass = part("sass")
    code = sass.parse(CODE)
    assert len(code) == 27
    assert {len(body) for body in sass.loops(code).values()} == {1, 2, 18}
    assert sass.summary(sass.main_loop(code)) == sass.Needs(
        instructions=14,
        barriers=1,
        cluster=0,
        fences=0,
        sent=0,
        releases=0,
        ring=1,
        hmma=1,
        mufu=1,
        calls=0,
    )
    with pytest.raises(ValueError, match="no loop"):
        sass.main_loop(code[:3])


@pytest.mark.parametrize(
    "line, field",
    [
        ("SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR4+0x28], RZ", "barriers"),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "barriers"),
        ("BAR.SYNC.DEFER_BLOCKING 0x1, 0x80", "barriers"),
        ("SYNCS.ARRIVE.TRANS64.RED.A1T0 RZ, [R0+URZ], RZ", "cluster"),
        ("FENCE.VIEW.ASYNC.S", "fences"),
        ("STAS [R122.64], R141", "sent"),
        ("MEMBAR.ALL.GPU", "releases"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR8], R26", "ring"),
        ("MUFU.TANH R4, R4", "mufu"),
        ("HMMA.16816.F32 R52, R64, R80, R24", "hmma"),
        ("CALL.REL.NOINC `(.L_x_9)", "calls"),
    ],
)
def test_one_more_is_over_the_budget(script, line, field):
    kernels = part("kernels")
    before = kernels.measured(ASSEMBLER, RESOURCES, CODE)
    most = {name: getattr(before, name) for name in kernels.Needs._fields}
    budget = kernels.Needs(**most)
    assert kernels.exceeded(before, budget) == []
    (why,) = kernels.exceeded(before._replace(instructions=15), budget)
    assert why == "instructions 15 > 14"
    budget = budget._replace(instructions=None)
    wait = "  /*0078*/  SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR4+0x28], R26\n" * ("A1T0" in line)
    place = "  -:-:1:Y:02  /*0080*/"
    after = kernels.measured(
        ASSEMBLER, RESOURCES, CODE.replace(place, f"  /*0078*/  {line}\n{wait}{place}")
    )
    (why,) = kernels.exceeded(after, budget)
    assert why == f"{field} {most[field] + 1} > {most[field]}"


@pytest.mark.parametrize(
    "barriers, met", [(["R91, 0x80"], 0), (["0x0"], 1), (["0x1, 0x100"], 1), (["0x1, 0x80"] * 2, 1)]
)
def test_the_barrier_of_a_fence(script, barriers, met):
    sass = part("sass")
    begun = "MEMBAR.ALL.CTA", "FENCE.VIEW.ASYNC.S"
    names = [*begun, "IADD3 R1, R2, R3", *(f"BAR.SYNC.DEFER_BLOCKING {b}" for b in barriers)]
    text = "\n".join(f"  /*{16 * k:04x}*/  {name} ;" for k, name in enumerate(names))
    found = sass.summary(sass.parse(text))
    assert (found.fences, found.releases, found.barriers) == (1, 0, met)


def test_what_the_assembler_says(script):
    kernels = part("kernels")
    found = kernels.measured(ASSEMBLER, RESOURCES, CODE)
    assert (found.registers, found.shared_bytes, found.spilled_bytes) == (96, 69632, 16)
    with pytest.raises(ValueError, match="registers"):
        kernels.measured(ASSEMBLER.replace("Used", "Needs"), RESOURCES, CODE)


def test_budgets(script):
    gated = part("gated")
    lstm = gated.Kernel("lstm", 64, "bfloat16")
    forward, reverse = (gated.budget(lstm, d) for d in ("forward", "reverse"))
    assert (forward.hmma, forward.mufu, forward.spilled_bytes) == (16, 40, 0)
    assert (reverse.mufu, reverse.barriers, reverse.fences, reverse.cluster) == (0, 1, 1, 0)
    wide = gated.budget(lstm._replace(dtype="float32"), "forward")
    assert wide.hmma == 96 and wide.instructions is None
    dense = gated.budget(lstm._replace(size=512, dense=True), "reverse")
    assert (dense.sent, dense.releases, dense.cluster) == (16, 8, 1)


@pytest.mark.parametrize("family", ["gated", "diagonal"])
def test_every_kernel_has_a_budget(script, family):
    module = part(family)
    names = [str(kernel) for kernel in module.KERNELS]
    assert len(set(names)) == len(names)
    budgets = [module.budget(k, d) for k in module.KERNELS for d in ("forward", "reverse")]
    assert all(b.registers <= 255 and b.shared_bytes <= 232448 for b in budgets)


@pytest.fixture
def compiled(script, monkeypatch):
    """Replace the compiler by what it would have found."""
    graphs, kernels = part("graphs"), part("kernels")
    good = graphs.measured(SEQUENCE, OPTIMIZED)
    kernel = kernels.measured(ASSEMBLER, RESOURCES, CODE)._replace(
        registers=32, shared_bytes=16384, spilled_bytes=0, barriers=0, hmma=0, mufu=0
    )
    monkeypatch.setattr(part("target"), "missing", list)
    monkeypatch.setattr(script.mosaic, "available", lambda: None)
    monkeypatch.setattr(script, "versions", lambda: {"jax": "1"})
    monkeypatch.setattr(part("target"), "h200", lambda: None)
    monkeypatch.setattr(graphs, "compiled", lambda *args: good)
    for family in script.FAMILIES:
        monkeypatch.setattr(family, "compiled", lambda *args: {"reverse": kernel})
    return good, kernel


def test_kept_and_broken_promises(script, compiled, monkeypatch, tmp_path, capsys):
    good, kernel = compiled
    path = tmp_path / "report.json"
    assert main("--json", str(path)) == 0
    printed = capsys.readouterr().out
    assert "lstm float32 bptt()" in printed and "all promises are kept" in printed
    document = json.loads(path.read_text())
    assert len(document["graphs"]) == 12
    assert len(document["kernels"]) == sum(len(family.KERNELS) for family in script.FAMILIES)

    bad = good._replace(one_graph=False)
    monkeypatch.setattr(part("graphs"), "compiled", lambda *args: bad)
    spilled = kernel._replace(spilled_bytes=100)
    monkeypatch.setattr(part("gated"), "compiled", lambda *args: {"reverse": spilled})
    assert main() == 1
    printed = capsys.readouterr().out
    assert "graphs: lstm float32 bptt(): no CUDA graph encloses all loops" in printed
    assert "autodiff(): no CUDA graph" not in printed
    assert "kernels: gru D=64 bfloat16 reverse: spilled_bytes 100 > 0" in printed


def test_the_table_of_the_readme(script, compiled, tmp_path, capsys):
    readme = tmp_path / "README.md"
    command = ["--parts", "kernels", "--markdown", str(readme)]
    assert main(*command) == 2
    assert "has no lines <!-- bench cuda -->" in capsys.readouterr().err
    readme.write_text("before\n<!-- bench cuda -->\n<!-- end of bench cuda -->\nafter\n")
    assert main(*command) == 0
    written = readme.read_text()
    assert written.startswith("before\n") and written.endswith("after\n")
    assert "| lstm D=64 bfloat16 | 32 | 0 | 16 | 14 | 0 | 0 |" in written
    assert "flags" not in written and "diagonal" not in written
    assert main("--parts", "graphs", "--markdown", str(readme)) == 2


def test_what_to_install_is_said(script, monkeypatch, capsys):
    monkeypatch.setattr(part("target"), "NEEDED", {"no_such_plugin": "the plugin"})
    assert main() == 2
    assert capsys.readouterr().err == (
        "bench compile-for h200: the plugin not installed; pip install 'jax_bptt[cuda-compile]'\n"
    )
    monkeypatch.setattr(part("target"), "NEEDED", {"no.such.bin.program": "the program"})
    assert part("target").missing() == ["the program"]
