"""The manual of a service: what was built, to all who ask, and nothing else of the disk."""

import os
from pathlib import Path

from featurestore.settings import StoreSettings
from tests.support.serving import serving

ROOT = Path(__file__).resolve().parents[3]
# What is served does not depend on the kind of store.


def build(folder: Path, text: str) -> None:
    (folder / "how-to").mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(text)
    (folder / "how-to/index.html").write_text("how to")
    (folder / "font.woff2").write_bytes(b"\0font")
    (folder / "objects.inv").write_bytes(b"of no use to a browser")
    (folder / "searchindex.js").write_text("Search.setIndex({})")


async def test_pages_are_served_as_they_were_built(store_settings: StoreSettings, tmp_path: Path) -> None:
    folder = tmp_path / "manual"
    build(folder, "first")
    async with serving(store_settings, manual_dir=folder) as (client, _):
        found = await client.get("/manual")
        assert (found.status, found.text) == (200, "first")
        page = await client.get("/manual/")
        assert (page.text, page.headers["Content-Type"]) == ("first", "text/html; charset=utf-8")
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        again = await client.get("/manual/", headers={"If-None-Match": page.headers["ETag"]})
        assert (again.status, again.text) == (304, "")
        assert (await client.get("/manual/how-to/")).text == "how to"
        assert (await client.get("/manual/how-to/index.html")).text == "how to"
        assert (await client.get("/manual/font.woff2")).headers["Content-Type"] == "font/woff2"
        for name in (
            "objects.inv",
            "nothing.html",
            "how-to",
            "../secret.html",
            "..%2fsecret.html",
            "%00",
            "a" * 5_000,
        ):
            (tmp_path / "secret.html").write_text("secret")
            assert (await client.get(f"/manual/{name}")).status == 404, name
        # Other pages keep their own policy.
        assert "form-action 'none'" in (await client.get("/")).headers["Content-Security-Policy"]
        # A new build is there without a restart.
        build(folder, "second")
        os.utime(folder / "searchindex.js", ns=(0, 1))
        assert (await client.get("/manual/")).text == "second"


async def test_a_service_without_a_manual_says_how_to_build_it(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with serving(store_settings, manual_dir=tmp_path / "none") as (client, _):
        found = await client.get("/manual")
        assert found.status == 200
        assert "make docs" in found.text
        # Links of the dashboard lead to its pages.
        for name in ("", "index.html", "alerts.html", "how-to/"):
            assert (await client.get(f"/manual/{name}")).text == found.text
        file = await client.get("/manual/_static/theme.css")
        assert (file.status, file.json["code"]) == (404, "not_found")
        assert "make docs" in file.json["detail"]
