# A model repository as an image, which the init container of Triton's pods unpacks:
#   docker build -f deploy/models.Dockerfile -t registry.example.com/tresnet-models:1 model_repository
ARG PYTHON_DIGEST=
FROM python:3.11-slim-bookworm${PYTHON_DIGEST:+@$PYTHON_DIGEST}
COPY . /models
USER 10001:10001
CMD ["cp", "-R", "/models/.", "/repository/"]
HEALTHCHECK NONE
