# From a folder of annotated images to a trained detector. Needs a folder in a known format (docs/your-data.md).
set -eu
yolofleet init exports/ultralytics --name own
yolofleet data show shards/own/train --out shown
yolofleet train own.yaml
yolofleet predict runs/own photos --out found
