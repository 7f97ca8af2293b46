# The page of tools/serve.py in a container, on a CPU: docs/predict.md#in-a-container
FROM python:3.12-slim

WORKDIR /project
COPY requirements.txt requirements-api.txt requirements-serve.txt ./
COPY common common
COPY toolbox toolbox
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir -r requirements-serve.txt
COPY clip clip
COPY configs configs
COPY datasets datasets
COPY fit fit
COPY inference inference
COPY measures measures
COPY runs runs
COPY tools tools
COPY trainers trainers
RUN useradd --create-home user && install -d -o user /home/user/.cache
USER user
VOLUME /home/user/.cache

EXPOSE 7860
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "tools/serve.py", "--host", "0.0.0.0"]
