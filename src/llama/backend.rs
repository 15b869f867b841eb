//! llama.cpp's process-wide state: initialisation, devices, and what the CPU kernels were built for.

use std::ffi::{CStr, CString};
use std::sync::Once;

use llama_cpp_sys_2 as sys;

use super::log;

/// Initialises llama.cpp, once a process. It is never freed: other code in the same process may still be using it.
pub(crate) fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::install();
        // With `dynamic-backends` the CPU kernels are shared objects beside the program, chosen by the CPU found here.
        #[cfg(feature = "dynamic-backends")]
        // SAFETY: takes no arguments, and the `Once` keeps a second thread out.
        unsafe {
            sys::ggml_backend_load_all()
        };
        // SAFETY: takes no arguments, and the `Once` keeps a second thread out.
        unsafe { sys::llama_backend_init() };
        super::plug::install();
    });
}

/// A device that ggml can compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// ggml's name, for example `CPU` or `CUDA0`.
    pub name: String,
    /// The vendor's name for it.
    pub description: String,
    /// `CPU`, `GPU`, `integrated GPU` or `accelerator`.
    pub kind: &'static str,
    /// Bytes free on the device.
    pub memory_free: u64,
    /// Bytes on the device.
    pub memory_total: u64,
}

impl Device {
    /// True for devices that layers can be offloaded to.
    pub fn is_gpu(&self) -> bool {
        matches!(self.kind, "GPU" | "integrated GPU")
    }
}

/// The devices that this build can compute on, in ggml's order.
pub fn devices() -> Vec<Device> {
    init();
    llama_cpp_2::list_llama_ggml_backend_devices()
        .into_iter()
        .map(|device| Device {
            name: device.name,
            description: device.description,
            kind: match device.device_type {
                llama_cpp_2::LlamaBackendDeviceType::Cpu => "CPU",
                llama_cpp_2::LlamaBackendDeviceType::Gpu => "GPU",
                llama_cpp_2::LlamaBackendDeviceType::IntegratedGpu => "integrated GPU",
                _ => "accelerator",
            },
            memory_free: device.memory_free as u64,
            memory_total: device.memory_total as u64,
        })
        .collect()
}

/// The most devices that llama.cpp handles in one process.
pub fn max_devices() -> usize {
    llama_cpp_2::max_devices()
}

/// The instruction sets that ggml's CPU kernels really use here, for example `AVX2`, as the CPU backend itself tells.
///
/// A build without `-C target-cpu=native` has next to none of them and is several times slower; this is how to see it.
pub fn cpu_features() -> Vec<String> {
    init();
    let Some(get_features) = proc_address(c"ggml_backend_get_features") else {
        return Vec::new();
    };
    // SAFETY: ggml documents this address as a `ggml_backend_get_features_t`.
    let get_features: unsafe extern "C" fn(sys::ggml_backend_reg_t) -> *mut sys::ggml_backend_feature =
        unsafe { std::mem::transmute(get_features) };
    let mut found = Vec::new();
    // SAFETY: the registry is the one that the address came from.
    let mut feature = unsafe { get_features(cpu_registry()) };
    // SAFETY: the list is static and ends with an entry whose name is NULL.
    while let Some(entry) = unsafe { feature.as_ref() }.filter(|entry| !entry.name.is_null()) {
        // SAFETY: both are NUL-terminated and static.
        let (name, value) = unsafe { (CStr::from_ptr(entry.name), CStr::from_ptr(entry.value)) };
        match value.to_str() {
            Ok("0") | Err(_) => {}
            Ok("1") => found.push(name.to_string_lossy().into_owned()),
            Ok(value) => found.push(format!("{}={value}", name.to_string_lossy())),
        }
        // SAFETY: the entry was not the last one.
        feature = unsafe { feature.add(1) };
    }
    found
}

fn cpu_registry() -> sys::ggml_backend_reg_t {
    // SAFETY: looks a device up; NULL if this build has no CPU backend.
    let device = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
    if device.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: the device is not NULL.
    unsafe { sys::ggml_backend_dev_backend_reg(device) }
}

/// The address of a function of the CPU backend. With `dynamic-backends` they cannot be linked, only looked up.
pub(crate) fn proc_address(name: &CStr) -> Option<std::ptr::NonNull<std::ffi::c_void>> {
    let registry = cpu_registry();
    if registry.is_null() {
        return None;
    }
    // SAFETY: a live registry and a NUL-terminated name.
    std::ptr::NonNull::new(unsafe { sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr()) })
}

/// A path as C takes it. `None` if it contains a NUL byte.
pub(super) fn c_path(path: &std::path::Path) -> Option<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_cpu() {
        assert!(devices().iter().any(|device| device.kind == "CPU"));
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    fn ggml_uses_the_instruction_sets_that_this_build_was_made_for() {
        let features = cpu_features();
        assert!(features.iter().any(|name| name == "AVX2"), "{features:?}");
    }
}
