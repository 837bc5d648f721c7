"""Merging against written-out formulas, limits that must hold exactly, and states that must be refused."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from heredity.lm.merge import MergeError, compare_states, cosine, linear, merge_states, slerp, task_arithmetic, ties


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_angle(degrees: float, n: int = 64) -> tuple[Tensor, Tensor]:
    """Two float64 vectors of lengths 2 and 3 at a known angle."""
    a, b = torch.zeros(2, n, dtype=torch.float64)
    a[0] = 2
    b[0], b[1] = 3 * math.cos(math.radians(degrees)), 3 * math.sin(math.radians(degrees))
    return a, b


class TestSlerp:
    def test_weights_come_from_the_normalized_angle_and_apply_to_the_raw_tensors(self):
        for degrees, t in ((60, 0.3), (90, 0.5)):
            a, b = at_angle(degrees)
            theta = math.radians(degrees)
            expected = math.sin((1 - t) * theta) / math.sin(theta) * a + math.sin(t * theta) / math.sin(theta) * b
            assert_close(slerp(a, b, t), expected)

    def test_a_tensor_is_one_vector_whatever_its_shape(self):
        a, b = normal(6, 4, seed=1), normal(6, 4, seed=2)
        assert_close(slerp(a, b, 0.4).reshape(-1), slerp(a.reshape(-1), b.reshape(-1), 0.4))
        by_row = torch.stack([slerp(x, y, 0.4) for x, y in zip(a, b, strict=True)])
        assert (slerp(a, b, 0.4) - by_row).abs().max() > 1e-3

    def test_unit_vectors_stay_on_the_sphere(self):
        a, b = normal(500, seed=1), normal(500, seed=2)
        a, b = a / a.norm(), b / b.norm()
        for t in (0.1, 0.5, 0.77):
            assert float(slerp(a, b, t).norm()) == pytest.approx(1, abs=1e-6)
            assert cosine(a, slerp(a, b, t)) == pytest.approx(math.cos(t * math.acos(cosine(a, b))), abs=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_ends_are_the_inputs_bit_for_bit(self, dtype: torch.dtype):
        a, b = normal(50, seed=1).to(dtype), normal(50, seed=2).to(dtype)
        a[0], b[0] = -0.0, -0.0
        for t, end in ((0, a), (1.0, b)):
            merged = slerp(a, b, t)
            assert merged.dtype == dtype and merged.data_ptr() != end.data_ptr()
            assert torch.equal(merged.view(torch.uint8), end.view(torch.uint8))

    @pytest.mark.parametrize("opposite", [False, True])
    def test_near_parallel_and_near_opposite_tensors_are_interpolated_linearly(self, opposite: bool):
        inside, outside = math.degrees(math.acos(0.99951)), math.degrees(math.acos(0.99949))
        for degrees, straight in ((inside, True), (outside, False)):
            a, b = at_angle(180 - degrees if opposite else degrees)
            line = 0.7 * a + 0.3 * b
            assert torch.allclose(slerp(a, b, 0.3), line, rtol=1e-12, atol=1e-12) == straight

    def test_zero_tensors_have_no_direction_but_a_merge(self):
        zero, b = torch.zeros(10), normal(10)
        assert torch.equal(slerp(zero, zero, 0.5), zero) and torch.equal(slerp(b, b.clone(), 0.3), b)
        assert_close(slerp(zero, b, 0.25), math.sin(math.pi / 8) * b)
        assert torch.equal(slerp(zero, b, 0), zero) and torch.equal(slerp(zero, b, 1), b)
        assert slerp(torch.zeros(0, 4), torch.zeros(0, 4), 0.5).shape == (0, 4)

    def test_half_precision_is_merged_in_float32_and_cast_back(self):
        a, b = normal(4096, seed=1).bfloat16(), normal(4096, seed=2).bfloat16()
        assert torch.equal(slerp(a, b, 0.3), slerp(a.float(), b.float(), 0.3).bfloat16())
        huge = torch.full((4096,), 60000.0, dtype=torch.float16)
        assert torch.isfinite(slerp(huge, huge.flip(0) / 2, 0.5)).all()

    @pytest.mark.parametrize(
        ("a", "b", "t", "message"),
        [
            *((normal(3), normal(3), t, r"outside \[0, 1\]") for t in (-0.1, 1.1, math.nan)),
            (normal(3), normal(4), 0.5, r"\[3\] and \[4\]"),
            (torch.arange(3), torch.arange(3), 0.5, "torch.int64"),
        ],
    )
    def test_what_lies_outside_or_does_not_fit_is_refused(self, a: Tensor, b: Tensor, t: float, message: str):
        with pytest.raises(MergeError, match=message):
            slerp(a, b, t)


class TestLinear:
    def test_it_is_the_weighted_mean(self):
        xs = [normal(5, seed=i) for i in range(3)]
        assert_close(linear(xs, [1, 2, 5]), (xs[0] + 2 * xs[1] + 5 * xs[2]) / 8)
        assert_close(linear(xs, [1, 2, 5], normalize=False), xs[0] + 2 * xs[1] + 5 * xs[2])

    def test_one_weight_alone_returns_its_tensor_bit_for_bit(self):
        xs = [normal(50, seed=1), torch.full((50,), torch.inf)]
        xs[0][0] = -0.0
        assert torch.equal(linear(xs, [0.3, 0]).view(torch.int32), xs[0].view(torch.int32))

    @pytest.mark.parametrize(
        ("count", "weights", "message"),
        [(1, [1, 2], "2 for 1 parents"), (2, [1, -1], "sum to 0"), (1, [math.inf], "not all finite")],
    )
    def test_weights_that_do_not_fit_are_refused(self, count: int, weights: list[float], message: str):
        with pytest.raises(MergeError, match=message):
            linear([normal(3)] * count, weights)


class TestTaskVectors:
    def test_task_arithmetic_adds_weighted_differences_from_the_base(self):
        base, a, b = (normal(4, 3, seed=i) for i in range(3))
        assert_close(task_arithmetic(base, [a, b], [0.3, 0.6]), base + 0.3 * (a - base) + 0.6 * (b - base))
        assert_close(
            task_arithmetic(base, [a, b], [0.3, 0.6], normalize=True), base + (a - base) / 3 + 2 * (b - base) / 3
        )

    def test_ties_trims_elects_and_averages(self):
        base = torch.full((6,), 10.0)
        a = base + torch.tensor([4.0, -3.0, 0.1, 5.0, 2.0, 0.2])
        b = base + torch.tensor([2.0, 6.0, 0.3, -5.0, 0.1, -4.0])
        # density 4/6 keeps a: 4 -3 5 2, b: 2 6 -5 -4; signs + + . + (a tie is plus) + -
        expected = base + torch.tensor([3.0, 6.0, 0.0, 5.0, 2.0, -4.0])
        assert_close(ties(base, [a, b], [0.5, 0.5], 4 / 6), expected)
        unscaled = base + torch.tensor([3.0, 3.0, 0.0, 2.5, 1.0, -2.0])
        assert_close(ties(base, [a, b], [0.5, 0.5], 4 / 6, normalize=False), unscaled)

    def test_ties_weights_decide_the_sign_and_the_mean(self):
        base = torch.zeros(2)
        a, b = torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 4.0])
        assert_close(ties(base, [a, b], [3, 1], 1.0), torch.tensor([1.0, 7 / 4]))

    def test_trimming_keeps_the_largest_share_and_at_least_one(self):
        base, a = torch.zeros(1000), normal(1000)
        kept = ties(base, [a], [1.0], 0.2)
        assert int((kept != 0).sum()) == 200
        assert a[kept == 0].abs().max() <= a[kept != 0].abs().min()
        assert int((ties(base, [a], [1.0], 1e-9) != 0).sum()) == 1
        assert int((ties(base, [torch.ones(1000)], [1.0], 0.3) != 0).sum()) == 300

    def test_each_parent_can_have_its_own_density(self):
        base, a = torch.zeros(100), normal(100)
        b = -torch.ones(100) * 10
        assert_close(ties(base, [a, b], [1, 1], [1.0, 0.01])[b != 0][1:], a[1:])

    def test_densities_outside_their_range_are_refused(self):
        for density in (0, 1.5, math.nan, [0.5]):
            with pytest.raises(MergeError, match="density"):
                ties(normal(3), [normal(3), normal(3)], [1, 1], density)


def state(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    embed, mlp = normal(7, 4, seed=seed, scale=scale), normal(4, 4, seed=seed + 100, scale=scale)
    return {"embed.weight": embed, "norm.weight": torch.ones(4), "layers.0.mlp.weight": mlp, "steps": torch.tensor(3)}


@pytest.fixture
def three() -> list[dict[str, Tensor]]:
    return [state(seed) for seed in (1, 2, 3)]


class TestStates:
    def test_merged_model_at_t0_is_first_parent_and_at_t1_the_second_and_swapping_them_mirrors_t(self, three):
        a, b, _ = three
        for t, parent in ((0.0, a), (1.0, b)):
            for method in ("slerp", "linear"):
                merged, _ = merge_states([a, b], method, t)
                assert list(merged) == list(a)
                assert all(torch.equal(merged[name], parent[name]) for name in a)
        there, back = merge_states([a, b], "slerp", 0.3)[0], merge_states([b, a], "slerp", 0.7)[0]
        assert all(torch.allclose(there[name], back[name], atol=1e-6) for name in a)

    def test_the_report_says_what_happened_to_each_tensor(self):
        a, b = state(1), state(2, scale=3)
        b["layers.0.mlp.weight"] = a["layers.0.mlp.weight"] + 0.001
        merged, reports = merge_states([a, b], "slerp", 0.25)
        assert [report.name for report in reports] == sorted(a)
        assert [report.method for report in reports] == ["slerp", "linear", "linear", "copied"]
        embed, name = reports[0], "embed.weight"
        assert embed.cosine == pytest.approx(cosine(a[name], b[name]))
        assert embed.angle_degrees == pytest.approx(math.degrees(math.acos(embed.cosine)))
        assert embed.norm_b == pytest.approx(float(b[name].norm()), rel=1e-6)
        expected = 0.75 * embed.norm_a + 0.25 * embed.norm_b
        assert embed.norm_ratio == pytest.approx(float(merged[name].norm()) / expected, rel=1e-6)
        assert reports[2].norm_ratio == pytest.approx(1)

    def test_zero_tensors_are_reported_without_nan(self):
        (report,) = merge_states([{"bias": torch.zeros(3)}] * 2, "slerp", 0.5)[1]
        assert report[1:] == (0.0, 1.0, "linear", 1.0, 0.0, 0.0)

    def test_integer_buffers_are_copied(self, three):
        merged, _ = merge_states(three[:2], "linear", 0.5)
        assert merged["steps"] == 3 and merged["steps"].data_ptr() != three[0]["steps"].data_ptr()

    def test_tied_embeddings_stay_tied_and_are_refused_when_tied_in_one_parent_only(self, three):
        a, b, untied = three
        for each in (a, b):
            each["lm_head.weight"] = each["embed.weight"]
        merged, reports = merge_states([a, b], "slerp", 0.5)
        assert merged["lm_head.weight"].data_ptr() == merged["embed.weight"].data_ptr()
        assert len(reports) == 4
        untied["lm_head.weight"] = untied["embed.weight"].clone()
        for pair in ([a, untied], [untied, a]):
            message = "lm_head.weight shares its storage with embed.weight in parent . but not"
            with pytest.raises(MergeError, match=message):
                merge_states(pair, "slerp", 0.5)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("steps", torch.tensor(4), "steps holds torch.int64 values that differ between parent 1 and parent 2"),
            ("lm_head", normal(7, 4), "lm_head is in parent 2 but not in parent 1; merge models of one"),
            ("embed.weight", normal(8, 4), r"embed.weight is \[7, 4\] in parent 1 but \[8, 4\] in parent 2"),
            ("norm.weight", torch.full((4,), math.nan), "norm.weight: NaN or infinity in parent 2"),
        ],
    )
    def test_states_that_do_not_fit_each_other_are_refused_by_name(self, three, key, value, message):
        with pytest.raises(MergeError, match=message):
            merge_states([three[0], three[1] | {key: value}], "slerp", 0.5)
        with pytest.raises(MergeError, match=message.replace("parent 2", "base")):
            merge_states([three[0], three[2]], "ties", weights=[1, 1], base=three[1] | {key: value})

    def test_inputs_are_left_alone(self, three):
        a, b, base = three
        before = [{name: tensor.clone() for name, tensor in each.items()} for each in (a, b, base)]
        for method in ("task_arithmetic", "ties"):
            merge_states([a, b], method, weights=[1, 1], base=base)
        merge_states([a, b], "slerp", 0.5)[0]["embed.weight"].zero_()
        for each, old in zip((a, b, base), before, strict=True):
            assert all(torch.equal(each[name], old[name]) for name in old)

    def test_whole_states_are_merged_tensor_by_tensor(self, three):
        a, b, base = (each["embed.weight"] for each in three)
        pair, task = [0.4, 0.7], {"weights": [0.4, 0.7], "base": three[2]}
        for method, more, expected in (
            ("linear", {"weights": pair, "normalize": False}, linear([a, b], pair, normalize=False)),
            ("ties", task | {"density": 0.3}, ties(base, [a, b], pair, 0.3)),
            ("ties", task | {"normalize": False}, ties(base, [a, b], pair, 0.5, normalize=False)),
            ("task_arithmetic", task, task_arithmetic(base, [a, b], pair)),
            ("task_arithmetic", task | {"normalize": True}, task_arithmetic(base, [a, b], pair, normalize=True)),
        ):
            merged, reports = merge_states(three[:2], method, **more)
            assert torch.equal(merged["embed.weight"], expected)
            assert Counter(report.method for report in reports) == {method: 3, "copied": 1}
        assert_close(merge_states(three, "linear", weights=[1, 1, 2])[0]["embed.weight"], (a + b + 2 * base) / 4)
        assert_close(merge_states(three[:1], "task_arithmetic", weights=[1.0], base=three[2])[0]["embed.weight"], a)

    def test_a_child_merged_elsewhere_is_compared_with_its_parents(self):
        a, b, base = state(1), state(2, scale=3), state(3)
        merged, reports = merge_states([a, b], "ties", weights=[1, 2], base=base)
        floating = [report for report in reports if report.method == "ties"]
        del merged["steps"]
        assert compare_states(merged, [a, b], "ties", base) == floating
        merged["embed.weight"] = normal(8, 4)
        assert [row.name for row in compare_states(merged, [a, b], "ties", base)] == [r.name for r in floating[1:]]
        assert compare_states(merged, [a], "passthrough") == []
        merged["norm.weight"] = torch.full((4,), math.inf)
        with pytest.raises(MergeError, match="norm.weight: overflows torch.float32"):
            compare_states(merged, [a, b], "ties")

    @pytest.mark.parametrize(
        ("count", "method", "arguments", "message"),
        [
            (2, "slurp", {"t": 0.5}, "method='slurp' is unknown"),
            (2, "slerp", {}, "slerp takes exactly two parents and t.*; given are 2 parents, t=None"),
            (2, "slerp", {"t": 0.5, "weights": [1, 1]}, r"neither weights nor base; .*weights=\[1, 1\]"),
            (2, "slerp", {"t": 0.5, "base": state(3)}, "neither weights nor base; .*a base"),
            (3, "slerp", {"t": 0.5}, "exactly two parents.* given are 3 parents"),
            (2, "linear", {}, "either exactly two parents and t, or"),
            (2, "linear", {"t": 2.0}, r"t=2.0 is outside \[0, 1\]"),
            (1, "linear", {"t": 0.5}, "at least two.* given are 1 parents"),
            (3, "linear", {"t": 0.5}, "exactly two parents and t.* given are 3 parents, t=0.5"),
            (2, "ties", {"weights": [1, 1]}, "and a base, the model that its parents descend from; .*no base"),
            (2, "ties", {"base": state(3)}, "ties takes one weight per parent"),
            (2, "ties", {"base": state(3), "weights": [1, 1], "density": 0}, "density=0 is outside"),
            (2, "ties", {"base": state(3), "weights": [1]}, "1 for 2 parents"),
            (2, "dare_ties", {"base": state(3), "weights": [1, 1]}, "'dare_ties' is unknown.*merge with mergekit"),
        ],
    )
    def test_what_a_method_does_not_take_is_refused(self, three, count: int, method, arguments: dict, message: str):
        with pytest.raises(MergeError, match=message):
            merge_states(three[:count], method, **arguments)

    def test_an_overflow_is_named_with_its_tensor(self):
        big = {"w": torch.full((4,), 60000.0, dtype=torch.float16)}
        with pytest.raises(MergeError, match="w: overflows torch.float16"):
            merge_states([big, big], "task_arithmetic", weights=[1, 1], base={"w": torch.zeros(4).half()})
