# glray in an image, for one machine or the nodes of a Ray cluster. It has not been built by its authors yet.
#
#   docker build -t glray:0.2.0 .
#   docker run --rm --shm-size=2g -v "$PWD":/work glray:0.2.0 run mine.py             # CPU
#   docker run --rm --shm-size=2g --gpus all -v "$PWD":/work glray:0.2.0 run mine.py  # NVIDIA GPUs
#
# The tag is glray's version: a run resumes with the code that it began with.
#
# Ray keeps its objects in /dev/shm: Docker's 64 MB are too few. PyPI's PyTorch brings CUDA, some gigabytes; an
# image without is built with --build-arg TORCH_INDEX= and the address of PyTorch's own index of CPU wheels.
FROM python:3.12-slim

ARG TORCH_INDEX=

# g++: torch.compile. wget: KubeRay asks with it whether Ray is up.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home glray && mkdir /work && chown glray /work
WORKDIR /opt/glray
COPY constraints.txt ./
RUN torch=$(grep '^torch==' constraints.txt) && sed -i '/^torch==/d' constraints.txt \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
COPY pyproject.toml README.md LICENSE ./
COPY glray glray
COPY pipelines pipelines
RUN pip install --no-cache-dir -c constraints.txt '.[cluster]'

USER glray
WORKDIR /work
ENTRYPOINT ["glray"]
CMD ["--help"]
