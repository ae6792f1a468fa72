# SPDX-License-Identifier: Apache-2.0
# Fails unless a JSON file holds, under the members WORDS, a value that IS, a regular expression.
file(READ "${FILE}" text)
string(JSON value GET "${text}" ${WORDS})
if(NOT value MATCHES "${IS}")
  message(FATAL_ERROR "${WORDS}: \"${value}\"")
endif()
