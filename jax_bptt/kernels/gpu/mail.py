"""Tiles that the blocks of a cluster send one another, into each other's shared memory.

Every block has a box with a place for each tile that it is sent. A tile is on its way without
anybody waiting for it, and announced to a barrier beside the box (`st.async`): who waits there goes
on when all tiles have come. Nothing passes through global memory.

JAX's interpreter has no rule for this. There the boxes of all blocks lie in global memory, and in
place of the barriers there are those of the cluster, where each warpgroup arrives when it has sent
its tiles. Who waits for whom is the same in both, so that the interpreter's race detector sees a
box that is read too early, and one that is written while it is still read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.kernels.gpu import mosaic
from jax_bptt.kernels.gpu.mosaic import ROWS, UNITS, plgpu
from jax_bptt.kernels.gpu.parts import Place, Plan


class Box(NamedTuple):
    """The messages that the blocks of a cluster send one another.

    Attributes:
      place: where the warpgroup works.
      memory: the block's own box in shared memory, or those of all blocks in global memory,
        [B / ROWS, P, ...].
      arrived: barriers for parts of the box.
      interpreted: whether the interpreter runs the kernel.
    """

    place: Place
    memory: Any
    arrived: Any
    interpreted: bool

    def peer(self, k: int) -> Array:
        """Return the number of the k-th block from this one on, in a circle.

        Taken in this order, no two blocks send to a third at the same time.
        """
        count = self.place.plan.parts
        number = self.place.part + k
        return jnp.where(number < count, number, number - count)

    def send(self, to: Any, where: tuple[Any, ...], barrier: Any, tile: Array) -> None:
        """Send a tile to a block of the cluster, which may be this one.

        Args:
          to: number of the block.
          where: index of the tile's place in its box.
          barrier: index of the barrier that announces it.
          tile: in registers.
        """
        if self.interpreted:
            mosaic.store(self.memory.at[(self.place.block, to, *where)], tile)
            return
        plgpu.async_store_smem(
            tile,
            self.memory.at[where],
            self.arrived.at[barrier],
            cluster_idx=to,
            cluster_dim="part",
            optimized=False,
        )

    def sent(self, barrier: Any) -> None:
        """Say that the warpgroup has sent all its tiles that `barrier` announces."""
        if self.interpreted:
            plgpu.barrier_arrive(self.arrived.at[barrier])

    def received(self, barrier: Any) -> Any:
        """Return a reference to the block's own box once all that `barrier` announces is there."""
        plgpu.barrier_wait(self.arrived.at[barrier])
        if self.interpreted:
            return self.memory.at[self.place.block, self.place.part]
        return self.memory


class Post(NamedTuple):
    """The memory that a kernel needs for a box.

    Attributes:
      passing: shapes in global memory.
      scratch: shared memory and barriers.
    """

    passing: tuple[jax.ShapeDtypeStruct, ...]
    scratch: tuple[Any, ...]

    def open(self, place: Place, passing: Sequence[Any], scratch: Sequence[Any]) -> Box:
        """Return the box, from references to both."""
        memory, arrived = (*passing, *scratch)
        return Box(place, memory, arrived, interpreted=bool(passing))


class Arrivals(NamedTuple):
    """The messages that the barriers of a box wait for.

    Attributes:
      barriers: how many parts of the box are waited for one by one.
      senders: how many warpgroups of every block send to each of these parts,
      tiles: and how many tiles each.
    """

    barriers: int
    senders: int
    tiles: int


def post(
    plan: Plan,
    shape: tuple[int, ...],
    dtype: Any,
    arrivals: Arrivals,
    *,
    interpret: Any,
    columns: int = UNITS,
) -> Post:
    """Return what a box takes.

    Args:
      plan: of the kernel.
      shape: of the box, [*, ROWS, a multiple of UNITS].
      dtype: of what is sent.
      arrivals: for each of its barriers.
      interpret: parameters of the interpreter, or None to run on a GPU.
      columns: as of `mosaic.shared_tiles`.
    """
    if interpret is not None:
        everyone = jax.ShapeDtypeStruct((plan.rows // ROWS, plan.parts, *shape), dtype)
        arrived = plgpu.ClusterBarrier(
            collective_axes=("part",),
            num_arrivals=arrivals.senders,
            num_barriers=arrivals.barriers,
        )
        return Post((everyone,), (arrived,))
    arrived = plgpu.Barrier(
        num_arrivals=plan.parts * arrivals.senders * arrivals.tiles,
        num_barriers=arrivals.barriers,
    )
    return Post((), (mosaic.shared_tiles(shape, dtype, columns), arrived))
