//! How many layers fit on a GPU, and how their number is read.

use super::*;

fn gpu(free: u64) -> Device {
    Device { name: "CUDA0".to_owned(), description: String::new(), kind: "GPU", memory_free: free, memory_total: free }
}

#[test]
fn without_a_gpu_nothing_is_offloaded() {
    assert_eq!(layers_that_fit(1 << 30, &[]), Some(0));
    let cpu = Device { kind: "CPU", ..gpu(64 << 30) };
    assert_eq!(layers_that_fit(1 << 30, &[cpu]), Some(0));
}

#[test]
fn what_fits_is_offloaded_whole_and_the_rest_in_part() {
    assert_eq!(layers_that_fit(1 << 30, &[gpu(8 << 30)]), None);
    assert_eq!(layers_that_fit(4 << 30, &[gpu(3 << 30)]), Some(6));
    assert_eq!(layers_that_fit(4 << 30, &[gpu(256 << 20)]), Some(0));
}

#[test]
fn gpu_layers_are_read_as_they_are_printed() {
    for kind in [GpuLayers::Auto, GpuLayers::All, GpuLayers::Count(7)] {
        assert_eq!(kind.to_string().parse::<GpuLayers>().unwrap(), kind);
    }
    assert!("some".parse::<GpuLayers>().is_err());
}
