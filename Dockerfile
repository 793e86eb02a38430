# An image whose entry point is the command `tfcharrnn`.
#   CPU: docker build -t tfcharrnn .
#   GPU: docker build -t tfcharrnn:gpu --build-arg EXTRAS='[gpu]' .
#   docker run --rm [--gpus all] -v "$PWD:/data" tfcharrnn train --recipe=gru --input=my.txt --run_dir=runs/mine
FROM python:3.12-slim
ARG EXTRAS=
COPY . /src
RUN pip install --no-cache-dir "/src${EXTRAS}" && rm -rf /src
WORKDIR /data
ENTRYPOINT ["tfcharrnn"]
CMD ["--help"]
