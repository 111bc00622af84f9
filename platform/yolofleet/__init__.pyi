from yolofleet.api import Job as Job
from yolofleet.api import Prediction as Prediction
from yolofleet.api import Run as Run
from yolofleet.api import evaluate as evaluate
from yolofleet.api import export as export
from yolofleet.api import load as load
from yolofleet.api import predict as predict
from yolofleet.api import train as train
from yolofleet.api import tune as tune

__version__: str
