//! Which kernel a volume gets.

use clap::ValueEnum;

use super::*;

#[test]
fn names_are_the_same_everywhere() {
    for kernel in KernelChoice::KERNELS.into_iter().chain([KernelChoice::Auto]) {
        let name = kernel.to_string();
        assert_eq!(name.parse::<KernelChoice>().unwrap(), kernel);
        assert_eq!(<KernelChoice as ValueEnum>::from_str(&name, false), Ok(kernel));
        assert_eq!(serde_json::from_value::<KernelChoice>(name.into()).unwrap(), kernel);
    }
    assert_eq!(KernelChoice::value_variants().len(), KernelChoice::KERNELS.len() + 1);
    assert_eq!(
        "avx512".parse::<KernelChoice>().unwrap_err().to_string(),
        "unknown cipher kernel `avx512`: there are auto, vaes512, vaes256, aesni and portable"
    );
}

#[test]
fn a_kernel_does_the_work_that_it_was_chosen_for() {
    let key = VolumeKey::new(&key_bytes::<64>(), EqualHalves::Refuse).unwrap();
    for kernel in available_kernels() {
        let xts = Xts::with_kernel(&key, SectorSize::BYTES_512, plain64(0), kernel).unwrap();
        assert_eq!(xts.kernel(), kernel);
    }
    let auto = Xts::new(&key, SectorSize::BYTES_512, plain64(0)).unwrap();
    assert_eq!(Some(auto.kernel()), available_kernels().next());
}

#[test]
fn a_kernel_that_the_cpu_cannot_run_is_refused() {
    let key = VolumeKey::new(&key_bytes::<64>(), EqualHalves::Refuse).unwrap();
    for kernel in KernelChoice::KERNELS.into_iter().filter(|kernel| !kernel.is_available()) {
        let error = Xts::with_kernel(&key, SectorSize::BYTES_512, plain64(0), kernel).unwrap_err();
        assert!(matches!(&error, CipherError::KernelUnavailable { kernel: named, .. } if *named == kernel));
    }
    let error = CipherError::KernelUnavailable { kernel: KernelChoice::Aesni, needs: "AES-NI" };
    assert_eq!(
        error.to_string(),
        "this CPU cannot run the cipher kernel `aesni`, which needs AES-NI: use `auto`"
    );
}

/// Detection against what Linux says of the CPU, which it finds out on its own.
#[cfg(target_arch = "x86_64")]
#[test]
fn kernels_are_available_where_linux_knows_what_they_need() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':')).unwrap().1;
    let has = |wanted: &str| wanted.split(' ').all(|flag| flags.split(' ').any(|has| has == flag));
    assert_eq!(KernelChoice::Aesni.is_available(), has("aes pclmulqdq avx bmi2"));
    assert_eq!(KernelChoice::Vaes256.is_available(), has("vaes vpclmulqdq avx2 bmi2"));
    assert_eq!(KernelChoice::Vaes512.is_available(), has("vaes vpclmulqdq avx512f avx512bw bmi2"));
    assert!(KernelChoice::Portable.is_available());
}
