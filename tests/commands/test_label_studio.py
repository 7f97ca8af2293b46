"""The example of a back end for Label Studio, with a stand-in for its server."""

import pytest
from serving import serving

from inference.load import load

REASON = "label-studio-sdk is not installed (docs/labelling.md)"
pytest.importorskip("label_studio_sdk", reason=REASON)
from starlette.testclient import TestClient  # noqa: E402

from docs.label_studio import application  # noqa: E402

pytestmark = pytest.mark.slow

CONFIG = """<View><Image name="photo" value="$picture"/>
<Choices name="kind" toName="photo">{}</Choices></View>"""


def test_a_model_suggests_a_class_for_each_image_of_label_studio(finished, photos):
    classifier = load(finished("CoOp"))
    choices = "".join(f'<Choice value="{name}"/>' for name in classifier.class_names)
    names = ["a.jpg", "b.png"]
    files = {f"/data/upload/1/{name}": (photos / name).read_bytes() for name in names}
    with serving(files) as server:
        client = TestClient(application(classifier, f"{server.address}/", "key"))

        def predict(*addresses, choices=choices):
            tasks = [{"id": 1, "data": {"picture": address}} for address in addresses]
            return client.post(
                "/predict", json={"tasks": tasks, "label_config": CONFIG.format(choices)}
            )

        assert client.get("/health").json() == {"status": "UP"}
        assert client.post("/setup", json={"project": "1"}).json()["model_version"]
        results = predict(*files).json()["results"]
        found = [(each["result"][0]["value"]["choices"], each["score"]) for each in results]
        said = classifier.predict([photos / name for name in names])
        assert found == [([name], pytest.approx(p)) for ((name, p),) in said.top(1)]
        assert {each["result"][0]["from_name"] for each in results} == {"kind"}
        assert predict("http://example.org/a.jpg").status_code == 422
        other = '<Choice value="a cat"/>'
        assert "none of the choices" in predict(*files, choices=other).text
