"""The site: complete, with links that lead somewhere, and without requests to other servers."""

import functools
import html.parser
import http.server
import json
import threading
import urllib.parse

import browsers
import pytest
from paths import ROOT

pytest.importorskip("mkdocstrings", reason="mkdocs and mkdocstrings are not installed")

import make_site
import site_docstrings

import tfcharrnn
from tfcharrnn.errors import ConfigError, UserError


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "write.html"
    return tfcharrnn.export_model("pretrained:shakespeare", "html", path)


@pytest.fixture(scope="module")
def site(page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    make_site.build_site(page, folder, **make_site.describe_repository("someone/some.thing"))
    return folder


class Links(html.parser.HTMLParser):
    """What a page refers to, and what it can be referred to by."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id"))
        self.targets |= {attributes[name] for name in ("href", "src") if attributes.get(name)}


def test_every_link_leads_somewhere(site):
    # the page for addresses that do not exist has links from the root of a server
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 100
    for path, links in pages.items():
        for target in links.targets:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme:
                continue
            other = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            assert other.exists(), f"{path.name}: {target}"
            anchor = urllib.parse.unquote(parts.fragment)
            if anchor and other in pages and other.name != "write.html":
                assert anchor in pages[other].anchors, f"{path.name}: {target}"


def test_the_reference_has_every_public_name_and_every_module(site):
    reference = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert [name for name in tfcharrnn.__all__ if f'id="tfcharrnn.{name}"' not in reference] == []
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "tfcharrnn").rglob("*.py")}
    modules = {name.removesuffix(".__init__") for name in names} - {"tfcharrnn", "tfcharrnn.__main__"}
    assert {path.stem for path in (site / "api").glob("tfcharrnn.*.html")} == modules
    assert "Units in each recurrent layer." in reference  # settings are explained


def test_docstrings_are_shown_as_they_are_written():
    assert site_docstrings.escape_tags("`<S>` and <S>, a < b") == "`<S>` and &lt;S>, a &lt; b"


def test_a_link_that_leads_nowhere_is_an_error(page, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Here\n\n[There](#there)\n")
    settings = {"docs_dir": str(docs), "nav": ["index.md"], "hooks": [], "plugins": []}
    with pytest.raises(UserError, match="site: Aborted with 1 warnings"):
        make_site.build_site(page, tmp_path / "site", **settings)


def test_with_the_repositorys_address_the_notebook_opens_in_colab(site):
    assert (ROOT / "docs" / "example.ipynb").exists()
    colab = "https://colab.research.google.com/github/someone/some.thing/blob/main/docs/example.ipynb"
    for name in ("index.html", "python.html"):
        assert {"https://github.com/someone/some.thing", "example.ipynb", colab} <= Links(site / name).targets
    for name in ("index.html", "404.html"):  # what the theme's script takes to ask GitHub about the repository
        assert 'data-md-component="source"' not in (site / name).read_text(encoding="utf-8")


def test_without_an_address_no_link_leads_to_a_repository(page, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Here\n\n[A notebook](example.ipynb)\n")
    (docs / "example.ipynb").write_text("{}")
    ignored = {"nav": {"omitted_files": "ignore"}, "links": {"not_found": "ignore"}}  # the pages that the hook adds
    settings = {"docs_dir": str(docs), "nav": ["index.md"], "plugins": [], "validation": ignored}
    make_site.build_site(page, tmp_path / "site", **make_site.describe_repository(""), **settings)
    targets = Links(tmp_path / "site" / "index.html").targets
    assert "example.ipynb" in targets and [target for target in targets if "github" in target] == []


@pytest.mark.parametrize("name", ["something", "https://github.com/someone/something", "some one/thing", "a/b/c"])
def test_a_repository_is_its_owner_and_its_name(name):
    with pytest.raises(ConfigError, match="--repository: must be OWNER/NAME"):
        make_site.describe_repository(name)


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def address(site):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_pages_ask_no_other_server_and_the_first_one_writes(site, address):
    with browsers.start(400, ("browser", "performance")) as browser:
        from selenium.webdriver.support.ui import WebDriverWait

        for name in ("api/index.html", "serving.html", "index.html"):
            browser.get(f"{address}/{name}")
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), name
        browser.switch_to.frame(browser.find_element("tag name", "iframe"))
        status = browser.find_element("id", "status")
        WebDriverWait(browser, 30).until(lambda _: status.text.startswith("Done"))
        assert browser.find_element("id", "text").text
        browser.switch_to.default_content()
        assert browser.execute_script("return scrollY") == 0  # the reader stays at the top
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert f"{address}/write.html" in {url.partition("#")[0] for url in asked}
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
