"""A stand-in for the Hugging Face Hub's API, on a port of this machine: repositories, LFS uploads, commits, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from http_server import listening
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_stand_in_token"


@dataclass
class HubStandIn:
    """What it was sent.

    `objects` are the uploaded files by SHA-256; `drops` uploads are broken off before one is taken; `refuse` is an HTTP
    status with which every write is answered.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    drops: int = 0
    refuse: int = 0
    url: str = ""

    @contextmanager
    def listening(self) -> Generator[HubStandIn, None, None]:
        """On a free port while the block runs."""
        routes = [
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/validate-yaml", self.validate, methods=["POST"]),
            Route("/api/models/{org}/{name}/preupload/{revision}", self.preupload, methods=["POST"]),
            Route("/api/models/{org}/{name}/commit/{revision}", self.commit, methods=["POST"]),
            Route("/{org}/{name}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
            Route("/put/{oid}", self.put, methods=["PUT"]),
            Route("/api/models/{org}/{name}", self.info),
        ]
        with listening(Starlette(routes=routes)) as self.url:
            yield self

    def _refused(self, request: Request) -> Response | None:
        if self.refuse:
            return JSONResponse({"error": "no"}, status_code=self.refuse)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Invalid credentials"}, status_code=401)
        return None

    async def create(self, request: Request) -> Response:
        """POST /api/repos/create"""
        if refused := self._refused(request):
            return refused
        asked = await request.json()
        repo = f"{asked['organization']}/{asked['name']}"
        address = {"url": f"{self.url}/{repo}", "id": repo}
        if repo in self.repos:
            return JSONResponse(address | {"error": "exists"}, status_code=409)
        self.repos[repo], self.private[repo] = {}, asked.get("visibility") == "private"
        return JSONResponse(address)

    async def validate(self, request: Request) -> Response:
        """The hub checks the card's head."""
        return JSONResponse({"errors": [], "warnings": []})

    async def preupload(self, request: Request) -> Response:
        """Which files go by LFS."""
        if refused := self._refused(request):
            return refused
        files = (await request.json())["files"]
        big = (".safetensors", ".gguf", ".bin")
        told = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(big) else "regular",
                "shouldIgnore": False,
            }
            for one in files
        ]
        return JSONResponse({"files": told})

    async def batch(self, request: Request) -> Response:
        """Where to upload; nothing for an object that is there."""
        wanted = (await request.json())["objects"]

        def answer(one: dict[str, Any]) -> dict[str, Any]:
            href = {"href": f"{self.url}/put/{one['oid']}"}
            return one if one["oid"] in self.objects else {**one, "actions": {"upload": href}}

        return JSONResponse({"transfer": "basic", "objects": [answer(one) for one in wanted]})

    async def put(self, request: Request) -> Response:
        """An object's bytes."""
        oid = request.path_params["oid"]
        self.uploads.append(oid)
        if self.drops:
            self.drops -= 1
            return JSONResponse({"error": "gone"}, status_code=500)
        body = await request.body()
        if hashlib.sha256(body).hexdigest() != oid:
            return JSONResponse({"error": "damaged"}, status_code=400)
        self.objects[oid] = body
        return Response()

    async def commit(self, request: Request) -> Response:
        """Files into the repository."""
        if refused := self._refused(request):
            return refused
        repo = f"{request.path_params['org']}/{request.path_params['name']}"
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                self.repos[repo][entry["value"]["path"]] = self.objects[entry["value"]["oid"]]
        oid = "a" * 40
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"})

    async def info(self, request: Request) -> Response:
        """GET a repository."""
        repo = f"{request.path_params['org']}/{request.path_params['name']}"
        if repo not in self.repos:
            return JSONResponse({"error": "Repository not found"}, status_code=404)
        return JSONResponse({"id": repo, "private": self.private[repo], "sha": "a" * 40, "siblings": []})
