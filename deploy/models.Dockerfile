# A model repository as an image, which the init container of Triton's pods unpacks:
#   docker build -f deploy/models.Dockerfile -t registry.example.com/tresnet-models:1 model_repository
ARG PYTHON_DIGEST=
FROM python:3.11-slim-bookworm${PYTHON_DIGEST:+@$PYTHON_DIGEST}
COPY . /models
# Each model has a version with a program, and there is one model at least: Triton is ready with none, and the roll-out of
# an empty image would replace every pod that serves.
RUN for config in /models/*/config.pbtxt; do ls "$config" "${config%/*}"/[1-9]*/model.pt* || exit 1; done
USER 10001:10001
CMD ["cp", "-R", "/models/.", "/repository/"]
HEALTHCHECK NONE
