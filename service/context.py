"""The names under which an application keeps its state.

Invariant: each is set once, by one context of `app`.
"""

from aiohttp import web

from featurestore.generations.follower import Follower
from featurestore.store import Store
from service.http.admission import Admission
from service.http.bodies import BodyReader
from service.http.dispatch import Edge
from service.metrics import Board, Snapshot
from service.micro_batcher import Predictor
from service.ranking_queue import RankingDesk
from service.settings import Place, ServiceSettings
from service.training import Training

SETTINGS = web.AppKey("settings", ServiceSettings)
PLACE = web.AppKey("place", Place)
STORE = web.AppKey("store", Store)
FOLLOWER = web.AppKey("follower", Follower)
COUNTS = web.AppKey("counts", Snapshot)
BOARD = web.AppKey("board", Board)
BODIES = web.AppKey("bodies", BodyReader)
BATCHES = web.AppKey("batches", Admission)
IMPORTS = web.AppKey("imports", Admission)
PREDICTOR = web.AppKey("predictor", Predictor)
RANKING = web.AppKey("ranking", RankingDesk)
TRAINING = web.AppKey("training", Training)
EDGE = web.AppKey("edge", Edge)
