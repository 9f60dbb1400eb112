"""The pipeline: every pass in the order in which it runs, in two lists.

A pass is a function of the state (``Plan`` or ``Kernels``) that changes its graph in place. It
needs facts that an earlier pass leaves, and what a pass leaves holds to the end (``facts``).
"""

from __future__ import annotations

from nmcompile.passes import facts
from nmcompile.passes.assign import assign
from nmcompile.passes.compress_alike import compress_alike
from nmcompile.passes.compute_unpacked import compute_unpacked
from nmcompile.passes.convolution_as_matmul import (
    backward_convolution_as_matmul,
    forward_convolution_as_matmul,
)
from nmcompile.passes.exact_backward import exact_backward
from nmcompile.passes.find import find
from nmcompile.passes.free_layout import free_layout
from nmcompile.passes.fuse_producers import fuse_producers
from nmcompile.passes.lower_kernels import lower_kernels
from nmcompile.passes.lower_products import lower_products
from nmcompile.passes.observe import observe
from nmcompile.passes.order_kernels import order_kernels
from nmcompile.passes.own_results import own_results
from nmcompile.passes.prune_products import prune_backward, prune_forward
from nmcompile.passes.realise_seeds import realise_seeds
from nmcompile.passes.run import Pass
from nmcompile.passes.save_kept import save_kept
from nmcompile.passes.share_compressed import share_compressed
from nmcompile.passes.share_pruned import share_pruned
from nmcompile.passes.split_convolution_backward import split_convolution_backward
from nmcompile.passes.split_grouped_backward import split_grouped_backward

#: What each product of a joint graph gets; the graph stays as it is.
DECIDE: tuple[Pass, ...] = (
    # every product: role, operand kinds, reduction dimension; mutates nothing
    Pass(find, leaves=[facts.products_found]),
    # the rule that decides each, and what it gets; mutates nothing
    Pass(assign, needs=[facts.products_found], leaves=[facts.all_decided]),
)

#: On the joint graph of forward and backward (or on an inference graph).
JOINT: tuple[Pass, ...] = (
    *DECIDE,
    # dgrad and wgrad of a pruned grouped product: a node each
    Pass(split_grouped_backward, needs=[facts.all_decided]),
    # and of a pruned convolution
    Pass(split_convolution_backward, needs=[facts.all_decided], leaves=[facts.one_role_a_node]),
    # a 1x1 convolution that runs sparse is a matrix product
    Pass(
        forward_convolution_as_matmul,
        needs=[facts.one_role_a_node],
        leaves=[facts.forward_is_matmul],
    ),
    # operands of fprop products
    Pass(prune_forward, needs=[facts.forward_is_matmul], leaves=[facts.forward_pruned]),
    # where asked: mask the gradient, let wgrad read the pruned operand
    Pass(exact_backward, needs=[facts.forward_pruned], leaves=[facts.gradients_masked]),
    # so are its gradients, which exact_backward has to see as convolutions
    Pass(
        backward_convolution_as_matmul,
        needs=[facts.gradients_masked],
        leaves=[facts.backward_is_matmul],
    ),
    # operands of dgrad and wgrad products
    Pass(prune_backward, needs=[facts.backward_is_matmul], leaves=[facts.backward_pruned]),
    # what only a masked gradient reads is saved at the kept places alone
    Pass(save_kept, needs=[facts.gradients_masked, facts.backward_pruned]),
    # one read of a tensor writes all its compressed forms
    Pass(share_compressed, needs=[facts.backward_pruned], leaves=[facts.one_compression_a_tensor]),
)

#: On the forward and on the backward graph, after the partitioner.
POST_GRAD: tuple[Pass, ...] = (
    # what a region returns is nothing that its caller has already
    Pass(own_results, leaves=[facts.results_own_memory]),
    # on the CPU one read of a tensor writes everything that is pruned from it
    Pass(share_pruned, leaves=[facts.one_read_for_all_masks]),
    # and where no random number follows memory, Inductor chooses the layout
    Pass(free_layout, leaves=[facts.layouts_free]),
    # what products read of packed operands: one kernel, nothing dense in between
    Pass(compute_unpacked, leaves=[facts.unpacked_in_kernels]),
    # elementwise producers and compression: one kernel
    Pass(fuse_producers, leaves=[facts.kernels_generated]),
    # what else is saved of their inputs at the kept places is theirs to write
    Pass(
        compress_alike,
        needs=[facts.kernels_generated],
        leaves=[facts.kept_places_in_kernels],
    ),
    # of kernels that read the same, first the one after which most is free
    Pass(order_kernels, needs=[facts.kernels_generated]),
    # one random number for all masks of the graph
    Pass(realise_seeds),
    # in the version of a sampled step: what is pruned, before it is kernels
    Pass(observe),
    # kernels that Inductor launches itself
    Pass(lower_kernels, needs=[facts.kernels_generated], leaves=[facts.static_kernels_lowered]),
    # products that Inductor calls the library for itself
    Pass(lower_products, leaves=[facts.static_products_lowered]),
)
