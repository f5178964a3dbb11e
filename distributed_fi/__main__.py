# SPDX-License-Identifier: Apache-2.0
"""`python -m distributed_fi` is `distributed-fi`."""

from distributed_fi.cli.main import main

main()
