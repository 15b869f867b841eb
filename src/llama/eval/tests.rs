//! Nodes of tensors in plain memory, and hooks that stop, switch off and panic.

use super::*;

/// Stops at `stop`, and switches off every node before it.
struct Stopper {
    stop: &'static [u8],
    asked: Vec<String>,
}

impl EvalHook for Stopper {
    fn ask(&mut self, node: &mut Node<'_>) -> bool {
        self.asked.push(String::from_utf8_lossy(node.name()).into_owned());
        if node.name() != self.stop {
            node.mute();
        }
        node.name() == self.stop
    }
    fn data(&mut self, _: &mut Node<'_>) -> Verdict {
        Verdict::Abandon
    }
}

fn node(name: &str) -> sys::ggml_tensor {
    // SAFETY: a plain C struct of numbers, arrays and pointers, for which all zeros is a value.
    let mut tensor: sys::ggml_tensor = unsafe { std::mem::zeroed() };
    tensor.op = sys::GGML_OP_MUL_MAT;
    for (to, from) in tensor.name.iter_mut().zip(name.bytes()) {
        *to = from as std::ffi::c_char;
    }
    tensor
}

/// What `ggml_backend_sched_compute_splits` does with a callback; returns the names of the nodes it computed.
fn compute(splits: &mut [Vec<sys::ggml_tensor>], user_data: *mut Trampoline) -> Vec<String> {
    let call = Trampoline::CALLBACK.unwrap();
    let mut computed = Vec::new();
    for split in splits {
        let mut j0 = 0;
        while j0 < split.len() {
            let mut j1 = j0;
            // SAFETY: live tensors, and the trampoline that runs.
            let mut need = unsafe { call(&mut split[j1], true, user_data.cast()) };
            while !need && j1 + 1 < split.len() {
                j1 += 1;
                // SAFETY: as above.
                need = unsafe { call(&mut split[j1], true, user_data.cast()) };
            }
            let ran = split[j0..=j1].iter().filter(|node| node.op != sys::GGML_OP_NONE);
            computed.extend(ran.map(|node| String::from_utf8_lossy(name_of(node)).into_owned()));
            // SAFETY: as above.
            if need && !unsafe { call(&mut split[j1], false, user_data.cast()) } {
                break;
            }
            j0 = j1 + 1;
        }
    }
    computed
}

fn splits() -> Vec<Vec<sys::ggml_tensor>> {
    vec![["a", "stop", "b"].map(node).into(), ["c", "d", "e"].map(node).into(), ["f", "g"].map(node).into()]
}

#[test]
fn once_abandoned_each_later_split_runs_one_node_and_asks_nothing() {
    let mut hook = Stopper { stop: b"stop", asked: Vec::new() };
    let mut trampoline = Trampoline::default();
    let this = &raw mut trampoline;
    let mut splits = splits();
    // SAFETY: `this` is valid and used by this call alone.
    let computed = unsafe { Trampoline::run(this, &mut hook, || compute(&mut splits, this)) };
    assert_eq!(computed, ["stop", "c", "f"]);
    assert_eq!(hook.asked, ["a", "stop"]);
}

#[test]
fn what_was_switched_off_is_on_again_afterwards() {
    let mut hook = Stopper { stop: b"never", asked: Vec::new() };
    let mut trampoline = Trampoline::default();
    let this = &raw mut trampoline;
    let mut splits = splits();
    // SAFETY: `this` is valid and used by this call alone.
    let computed = unsafe { Trampoline::run(this, &mut hook, || compute(&mut splits, this)) };
    assert_eq!(computed, [""; 0]);
    assert!(splits.iter().flatten().all(|node| node.op == sys::GGML_OP_MUL_MAT));
}

#[test]
fn a_panic_is_resumed_after_the_decode_and_not_through_c() {
    struct Panics;
    impl EvalHook for Panics {
        fn ask(&mut self, _: &mut Node<'_>) -> bool {
            panic!("parked")
        }
        fn data(&mut self, _: &mut Node<'_>) -> Verdict {
            Verdict::Continue
        }
    }
    let mut trampoline = Trampoline::default();
    let this = &raw mut trampoline;
    let mut splits = splits();
    let mut returned = false;
    let caught = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `this` is valid and used by this call alone.
        unsafe {
            Trampoline::run(this, &mut Panics, || {
                compute(&mut splits, this);
                returned = true;
            });
        }
    }));
    assert!(returned, "the decode itself must return");
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"parked"));
}

#[test]
fn a_tensor_that_is_not_allocated_is_neither_read_nor_written() {
    let mut tensor = node("x");
    tensor.ne = [4, 1, 1, 1];
    tensor.nb = [4, 16, 16, 16];
    let mut edits = Edits::default();
    let mut node = Node { tensor: NonNull::from(&mut tensor), edits: &mut edits, owner: ContextId::default() };
    assert!(node.read_f32(&mut Vec::new()).unwrap_err().to_string().contains("not allocated"));
    assert!(node.write_f32(&[0.0; 4]).is_err());
}

/// Lets nodes compute their first two rows, and is done with a node after it was shown, if it is.
struct Narrows {
    sources: Vec<NodeId>,
    widens: bool,
    rows: Vec<i64>,
}

impl EvalHook for Narrows {
    fn ask(&mut self, node: &mut Node<'_>) -> bool {
        let narrowed = node.narrow(2, &self.sources);
        if narrowed {
            self.sources.push(node.id());
        }
        narrowed
    }
    fn data(&mut self, node: &mut Node<'_>) -> Verdict {
        self.rows.push(node.tensor().ne[1]);
        if self.widens {
            node.widen();
        }
        Verdict::Continue
    }
}

#[test]
fn nodes_are_narrowed_while_they_are_computed_and_not_after_the_decode() {
    for widens in [true, false] {
        let mut weight = node("weight");
        weight.ne = [4, 9, 1, 1];
        let mut states = node("states");
        states.ne = [4, 5, 1, 1];
        let mut bias = node("bias");
        bias.ne = [9, 1, 1, 1];
        let mut wide = node("wide");
        wide.ne = [9, 5, 1, 1];
        let mut split: Vec<_> = ["product", "scaled", "sum", "of wide", "mixed"].map(node).into();
        split.iter_mut().for_each(|node| node.ne = [9, 5, 1, 1]);
        let first = split.as_mut_ptr();
        split[0].src[..2].copy_from_slice(&[&raw mut weight, &raw mut states]);
        split[1].op = sys::GGML_OP_SCALE;
        split[2].op = sys::GGML_OP_ADD;
        // What is added to each row may be narrowed beside; a whole matrix may not.
        split[3].op = sys::GGML_OP_ADD;
        split[4].op = sys::GGML_OP_SOFT_MAX;
        // SAFETY: within the five nodes, which stay where they are.
        let nodes = unsafe { [first, first.add(1), first.add(2), first.add(3)] };
        split[1].src[0] = nodes[0];
        split[2].src[..2].copy_from_slice(&[nodes[1], &raw mut bias]);
        split[3].src[..2].copy_from_slice(&[nodes[2], &raw mut wide]);
        split[4].src[0] = nodes[2];
        let mut hook = Narrows { sources: vec![NodeId::of(&states)], widens, rows: Vec::new() };
        let mut trampoline = Trampoline::default();
        let this = &raw mut trampoline;
        let mut splits = [split];
        // SAFETY: `this` is valid and used by this call alone.
        unsafe { Trampoline::run(this, &mut hook, || compute(&mut splits, this)) };
        // One that is never widened has lost the rows that the next node would have to share.
        assert_eq!(hook.rows, if widens { vec![2, 2, 2] } else { vec![2] });
        assert!(splits[0].iter().chain([&states, &wide]).all(|node| node.ne[1] == 5));
        assert_eq!((weight.ne, bias.ne), ([4, 9, 1, 1], [9, 1, 1, 1]));
    }
}
