"""Compiler options under which a scan runs on a GPU without the host in its loop."""

COMMANDS = (
    "FUSION",
    "CUBLAS",
    "CUBLASLT",
    "CUSTOM_CALL",
    "CUDNN",
    "DYNAMIC_SLICE_FUSION",
    "CONDITIONAL",
    "WHILE",
)


def gpu_compiler_options() -> dict[str, str | int | bool]:
    """Return compiler options that make one CUDA graph of a scan, all T steps of it.

    By default XLA makes a graph of a loop's body alone, which the host launches once per step;
    several steps of a small network take less time than a launch. With these options loops are
    nodes of the graph: those of the forward and of the reverse pass, over steps and over blocks of
    steps, run on the device from end to end. Three things it takes:

    - `WHILE` among the operations that a graph may hold (the others are XLA's default);
    - no minimum size of a graph;
    - no `dynamic-slice-annotator`, the pass by which a slice that is stored as it is becomes a
      copy whose address the host computes. One such copy in a body, and XLA silently keeps the
      loop out of the graph; a scan that stores its states has one for each. Without the pass the
      slice is stored by a kernel, which finds the address itself.

    The options are for NVIDIA GPUs; elsewhere they have no effect. They are not the library's own:
    a plain `jax.lax.scan` gains in the same way. Compiled for an H200 without one (jax 0.12.0,
    T = 1024, B = 64, H = 512), the gradient of an LSTM, GRU or simple network is one graph around
    all of its loops, in float32 and bfloat16. What that gains on a device has not been measured.

    Returns:
      A dict for `jax.jit(f, compiler_options=...)` or `lowered.compile(compiler_options=...)`; a
      new one at every call, for more options to be added.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 2, 3))
      >>> def loss(params, xs):
      ...     return jnp.sum(jb.unroll(cell, params, xs)[1] ** 2)
      >>> gradient = jax.jit(jax.grad(loss), compiler_options=jb.gpu_compiler_options())
      >>> gradient(params, xs).w_s.shape
      (4, 4, 4)
    """
    return {
        "xla_gpu_enable_command_buffer": ",".join(COMMANDS),
        "xla_gpu_graph_min_graph_size": 1,
        "xla_disable_hlo_passes": "dynamic-slice-annotator",
    }
