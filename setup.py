"""Sagax's packages, dependencies and optional extras; docs/dependencies.md gives the reason for each."""

from setuptools import find_packages, setup

PACKAGES = find_packages(exclude=("tests", "tests.*", "benchmarks", "benchmarks.*"))

REQUIRED = [
    "absl-py>=2.1",
    "etils[epath]>=1.12",
    "flax>=0.12.8",
    "grain>=0.2.12",
    "importlib_resources>=6.0",
    "jax>=0.10,<0.13",
    "jaxtyping>=0.3.4",
    "jinja2>=3.1",
    "math-verify>=0.9",
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.11.25",
    "rich>=14.1",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "tensorflow-datasets>=4.9.9",
    "tokenizers>=0.21",
]

EXTRAS = {
    "cuda": ["jax[cuda12]"],
    "gcs": ["gcsfs>=2026.1"],
    "tpu": ["jax[tpu]"],
    "plan": ["jax[tpu]"],
    "ray": ["ray>=2.60"],
    "slurm": ["submitit>=1.5.2"],
    "select": ["datasketch>=2.0"],
    "track": ["tensorboardX>=2.6.2", "wandb>=0.18"],
    "eval": ["lm-eval>=0.4.13"],
    "parity": ["accelerate>=1.0", "torch>=2.6", "transformers>=4.57"],
    "notebooks": ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"],
    "docs": ["furo>=2025.12", "myst-nb>=1.4", "sphinx>=9.0"],
    "dev": [
        "beartype>=0.22",
        "datasketch>=2.0",
        "gcp-storage-emulator>=2026.7",
        "gcsfs>=2026.1",
        "hypothesis>=6.100",
        "import-linter>=2.5",
        "ipykernel>=6.29",
        "mypy>=1.15",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pytest>=8.0",
        "pytest-xdist>=3.6",
        # Not on every machine is there a Ray; where there is none, its tests are skipped.
        "ray>=2.60; python_version < '3.14' and (sys_platform == 'linux' or platform_machine == 'arm64')",
        "ruff>=0.12",
        "submitit>=1.5.2",
    ],
}

setup(
    name="sagax",
    version="0.1.0",
    description="A JAX research codebase for language models that reason: sparse, recurrent and latent",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_data={"data": ["**/*.txt", "**/*.tsv", "**/*.json", "**/*.jsonl"], "launch": ["*.html", "manifests/*"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
)
