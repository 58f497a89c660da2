#!/usr/bin/env bash
# A search and a scan of the demo model, and the proof of the search's scores. About fifteen minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")"
rm -rf runs
david search demo --scales 0.1:1 --trials 40 --out runs/search | tee search.txt
david scan demo --max-length 6 --windows 4 --out runs/scan | tee scan.txt
python ../verify/verify.py runs/search/best.json --model "${DAVID_CACHE:-$HOME/.cache/david}/demo-smollm2-135m" |
    tee ../verify/results.md
for run in search scan; do
    mkdir -p "$run"
    cp runs/"$run"/*.csv runs/"$run"/*.png runs/"$run"/best.json "$run"
done
cp runs/search/report.html search
if command -v chromium >/dev/null; then
    chromium --headless=new --no-sandbox --hide-scrollbars --window-size=1200,1700 --screenshot=search/report.png \
        "file://$PWD/search/report.html"
fi
