# Two images from one file:
#   docker build --target gateway -t tresnet-gateway .    the HTTP service; no torch, no compiler, no pip
#   docker build --target toolbox -t tresnet-toolbox .    `tresnet train`, `eval` and `export`
# A digest is given as --build-arg PYTHON_DIGEST=sha256:…; without one the tag decides.
ARG PYTHON_DIGEST=

FROM python:3.11-slim-bookworm${PYTHON_DIGEST:+@$PYTHON_DIGEST} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
# One security release of tini is as good as another; Debian stable never changes its behaviour.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && groupadd --gid 10001 tresnet \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tresnet

# Dependencies change rarely and the code often: they are installed from pyproject.toml alone, in layers of their own.
FROM base AS gateway-dependencies
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml ./
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *project['optional-dependencies']['tracing'], sep='\n')" \
        > requirements.txt \
    && python3 -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python3 install --no-cache-dir --requirement requirements.txt

FROM gateway-dependencies AS gateway-build
COPY . .
RUN pip --python /opt/venv/bin/python3 install --no-cache-dir --no-deps . \
    # Debug symbols and the libraries' own tests are a quarter of the environment.
    # Libraries that a wheel carries along (*.libs) were moved about already and do not bear it.
    && find /opt/venv -name '*.so' -type f -not -path '*.libs/*' -exec strip --strip-unneeded {} + \
    && find /opt/venv -type d -name tests -prune -exec rm -rf {} + \
    && tresnet serve --help > /dev/null && python3 -c 'import app.server'

FROM base AS gateway
COPY --from=gateway-build /opt/venv /opt/venv
ENV TRESNET_HOST=0.0.0.0
WORKDIR /srv
USER 10001:10001
EXPOSE 8080
# The process is up; whether its models answer is /readyz, which orchestrators ask.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python3", "-c", "import os, ssl, urllib.request as u; s = 'https' if 'TRESNET_TLS_CERTIFICATE' in os.environ else 'http'; u.urlopen(f\"{s}://127.0.0.1:{os.environ.get('TRESNET_PORT', 8080)}/livez\", timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["tini", "--", "tresnet"]
CMD ["serve"]

FROM gateway-dependencies AS toolbox-build
RUN python3 -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*extras['train'], *extras['data'], sep='\n')" \
        > requirements.txt \
    && pip --python /opt/venv/bin/python3 install --no-cache-dir --requirement requirements.txt
COPY . .
RUN pip --python /opt/venv/bin/python3 install --no-cache-dir --no-deps .

FROM base AS toolbox
COPY --from=toolbox-build /opt/venv /opt/venv
# Everything is written below the working directory: a volume, or the host's folder.
ENV HOME=/work \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
RUN chown 10001:10001 /work
USER 10001:10001
ENTRYPOINT ["tini", "--", "tresnet"]
CMD ["--help"]
# A command that ends has no health; without this the checkers ask for one.
HEALTHCHECK NONE
