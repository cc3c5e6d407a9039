"""What chips can do, as their makers and XLA's own descriptions say.

Rates are peaks that no program reaches; 1 TFLOP/s = 1e12 operations a second.

Sources, read 2026-11-26: TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e};
the memory is what their compiler says that programs may take. GPUs: NVIDIA's
data sheets of the SXM cards, dense rates; the numbers of `Card` are those of
openxla/xla, xla/backends/gpu/target_config/specs/*.txtpb (Apache-2.0).
"""

from typing import NamedTuple

GIB = 2**30


class Card(NamedTuple):
  """What XLA has to know of an NVIDIA card to compile for it.

  Attributes:
    description: its full name.
    compute_capability: (major, minor).
    core_count: streaming multiprocessors.
    fpus_per_core: units of float32 in each.
    clock_rate_ghz: highest.
    memory_bandwidth: bytes a second.
    memory_size: bytes in all.
    l2_cache_size: bytes.
    shared_memory_per_core: bytes.
    shared_memory_per_block: the most that a block can ask for.
  """

  description: str
  compute_capability: tuple[int, int]
  core_count: int
  fpus_per_core: int
  clock_rate_ghz: float
  memory_bandwidth: int
  memory_size: int
  l2_cache_size: int
  shared_memory_per_core: int
  shared_memory_per_block: int


class Chip(NamedTuple):
  """A kind of accelerator.

  Attributes:
    platform: 'tpu' or 'cuda'.
    memory: bytes that a program may take.
    bandwidth: of that memory, bytes a second.
    peak: dtype, as HLO writes it -> operations a second of products.
    link: bytes a second that a chip sends to its neighbours, one way.
    network: likewise to other hosts (GPU) or slices (TPU).
    axes: of the torus of a TPU.
    card: of a GPU.
  """

  platform: str
  memory: int
  bandwidth: float
  peak: dict[str, float]
  link: float
  network: float
  axes: int = 0
  card: Card | None = None


def _tpu(
  memory: float,
  bandwidth: float,
  tflops: float,
  *,
  link: float,
  network: float,
  axes: int,
) -> Chip:
  """Returns a TPU; memory in GiB, bandwidth, link and network in GB/s.

  Products of float32 are made of bfloat16 there, unless a program asks for
  more, which costs six times as much.
  """
  rate = tflops * 1e12
  return Chip(
    platform='tpu',
    memory=int(memory * GIB),
    bandwidth=bandwidth * 1e9,
    peak={'bf16': rate, 'f32': rate},
    link=link * 1e9,
    network=network * 1e9,
    axes=axes,
  )


# Of its memory JAX takes three quarters, unless XLA_PYTHON_CLIENT_MEM_FRACTION
# says otherwise.
GPU_SHARE = 0.75


def _gpu(
  tflops: float, tf32: float, *, link: float, network: float, card: Card
) -> Chip:
  """Returns a GPU; rates in TFLOP/s, link and network in GB/s.

  Products of float32 are made of TF32 there, as JAX has it by default.
  """
  return Chip(
    platform='cuda',
    memory=int(GPU_SHARE * card.memory_size),
    bandwidth=float(card.memory_bandwidth),
    peak={'bf16': tflops * 1e12, 'f16': tflops * 1e12, 'f32': tf32 * 1e12},
    link=link * 1e9,
    network=network * 1e9,
    card=card,
  )


_A100 = Card(
  description='NVIDIA A100-SXM4-80GB',
  compute_capability=(8, 0),
  core_count=108,
  fpus_per_core=64,
  clock_rate_ghz=1.41,
  memory_bandwidth=2_039_040_000_000,
  memory_size=85_100_068_864,
  l2_cache_size=41_943_040,
  shared_memory_per_core=167_936,
  shared_memory_per_block=166_912,
)
_H100 = Card(
  description='NVIDIA H100 80GB HBM3',
  compute_capability=(9, 0),
  core_count=132,
  fpus_per_core=128,
  clock_rate_ghz=1.98,
  memory_bandwidth=3_352_320_000_000,
  memory_size=84_942_979_072,
  l2_cache_size=52_428_800,
  shared_memory_per_core=233_472,
  shared_memory_per_block=232_448,
)
_H200 = _H100._replace(
  description='NVIDIA H200 141GB HBM3e',
  memory_bandwidth=4_800_000_000_000,
  memory_size=151_397_597_184,
)

# A TPU's network is its host's, divided among the host's chips; a GPU's is the
# one adapter that it has in NVIDIA's own servers: 200 Gbit/s, later 400.
CHIPS: dict[str, Chip] = {
  'v5e': _tpu(15.75, 819, 197, link=200, network=3.125, axes=2),
  'v5p': _tpu(95.74, 2765, 459, link=600, network=6.25, axes=3),
  'v6e': _tpu(31.25, 1638, 918, link=400, network=12.5, axes=2),
  'a100': _gpu(312, 156, link=300, network=25, card=_A100),
  'h100': _gpu(989.4, 494.7, link=450, network=50, card=_H100),
  'h200': _gpu(989.4, 494.7, link=450, network=50, card=_H200),
}


def target_config(card: Card) -> str:
  """Returns the description of a card that XLA compiles for, as text."""
  major, minor = card.compute_capability
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared_memory_per_core}
  threads_per_core_limit: 2048
  core_count: {card.core_count}
  fpus_per_core: {card.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {card.memory_bandwidth}
  l2_cache_size: {card.l2_cache_size}
  clock_rate_ghz: {card.clock_rate_ghz}
  device_memory_size: {card.memory_size}
  shared_memory_per_block_optin: {card.shared_memory_per_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{card.description}"
"""
