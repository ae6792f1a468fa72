#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# run.sh PYTHON SCRIPT ARGUMENTS...: runs a script of this folder, or says why it cannot and exits
# with 77, which CTest shows as "Skipped". An empty PYTHON stands for $EMPRL_PYTHON.
python=${1:-$EMPRL_PYTHON}
script=$2
shift 2
if [ -z "$python" ]; then
  echo "Skipped: no Python is named; set EMPRL_PYTHON to one that has torch and transformers."
  exit 77
fi
if ! "$python" -c "import torch, transformers, sentencepiece, safetensors" 2>/dev/null; then
  echo "Skipped: $python has not all of torch, transformers, sentencepiece and safetensors."
  exit 77
fi
exec "$python" "$script" "$@"
