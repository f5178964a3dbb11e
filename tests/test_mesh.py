# SPDX-License-Identifier: Apache-2.0
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_fi.errors import InvalidArgumentError, UnsupportedError
from distributed_fi.mesh import Mesh, MeshCoord

PROPERTY = settings(deadline=None, derandomize=True)
meshes = st.builds(Mesh, dp=st.integers(1, 9), tp=st.integers(1, 9))


@PROPERTY
@given(meshes)
def test_every_rank_stands_at_its_own_place(mesh: Mesh):
    coords = [mesh.coord(rank) for rank in range(mesh.world_size)]
    assert [coord.rank for coord in coords] == list(range(mesh.dp * mesh.tp))
    places = [(coord.dp_rank, coord.tp_rank) for coord in coords]
    assert places == [(dp_rank, tp_rank) for dp_rank in range(mesh.dp) for tp_rank in range(mesh.tp)]


@PROPERTY
@given(meshes)
def test_tp_groups_hold_the_ranks_of_each_replica(mesh: Mesh):
    groups = mesh.tp_groups()
    assert len(groups) == mesh.dp
    for dp_rank, ranks in enumerate(groups):
        assert [mesh.coord(rank).dp_rank for rank in ranks] == [dp_rank] * mesh.tp
        assert [mesh.coord(rank).tp_rank for rank in ranks] == list(range(mesh.tp))


def test_the_default_mesh_is_one_rank():
    assert Mesh().world_size == 1
    assert Mesh().coord(0) == MeshCoord(rank=0, dp_rank=0, tp_rank=0)


def test_a_mesh_can_be_sent_and_used_as_a_key():
    mesh = Mesh(dp=2, tp=3)
    assert pickle.loads(pickle.dumps(mesh)) == mesh
    assert {mesh: 1}[Mesh(dp=2, tp=3)] == 1


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
@pytest.mark.parametrize("axis", ["dp", "tp", "ep", "dcp"])
def test_an_axis_that_is_no_positive_integer_is_named(axis: str, size: object):
    with pytest.raises(InvalidArgumentError, match=f"{axis}: expected an integer >= 1, got {size}"):
        Mesh(**{axis: size})


@pytest.mark.parametrize("axis", ["ep", "dcp"])
def test_an_axis_that_no_model_uses_is_refused(axis: str):
    with pytest.raises(UnsupportedError, match=f"{axis}: expected 1 .*, got 2"):
        Mesh(**{axis: 2})


@pytest.mark.parametrize("rank", [-1, 6])
def test_a_rank_outside_the_mesh_is_named(rank: int):
    with pytest.raises(InvalidArgumentError, match=f"rank: expected 0 <= rank < 6, got {rank}"):
        Mesh(dp=2, tp=3).coord(rank)
