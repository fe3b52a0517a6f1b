//! The report's shape. What the figures are is the machine's business.

use super::*;

fn plan(contenders: Vec<Contender>) -> Plan {
    Plan {
        contenders,
        key_bits: vec![256, 512],
        sector_sizes: vec![SectorSize::BYTES_512, SectorSize::BYTES_4096],
        buffers_bytes: vec![4096, 2 << 20],
        time: Duration::from_micros(100),
    }
}

#[test]
fn every_contender_has_a_figure_in_every_case() {
    let mut shares = Vec::new();
    let report = run(&plan(Contender::all()), &mut |share| shares.push(share)).unwrap();
    assert!(shares.is_sorted() && shares.len() == 8 && shares[7] == 1.0, "{shares:?}");

    let mut names: Vec<_> = Contender::all().iter().map(ToString::to_string).collect();
    names.retain(|name| name != "openssl" || report.openssl.is_some());
    for (results, cores) in [(&report.results, 1), (&report.results_all_cores, report.cores)] {
        if cores == 1 && report.cores == 1 && results.is_empty() {
            continue;
        }
        let mut expected = Vec::new();
        for key_bits in [256, 512] {
            for sector_size in [512, 4096] {
                for buffer_bytes in [4096, 2 << 20] {
                    expected.extend(
                        names.iter().map(|name| (name.as_str(), key_bits, sector_size, buffer_bytes)),
                    );
                }
            }
        }
        let found = results.iter().map(|figure| {
            assert!(figure.encrypt_gb_per_s > 0.0 && figure.decrypt_gb_per_s > 0.0, "{figure:?}");
            (figure.kernel.as_str(), figure.key_bits, figure.sector_size, figure.buffer_bytes)
        });
        assert!(found.eq(expected), "{results:?}");
    }
}

#[test]
fn ciphers_that_disagree_are_found() {
    let case = |key_bits| Case { key_bits, sector_size: SectorSize::BYTES_512, buffer_bytes: 4096 };
    let prepared =
        |key_bits| Prepared::new(Contender::Kernel(KernelChoice::Portable), case(key_bits), None).unwrap();
    contender::check_agreement(&[prepared(256), prepared(256)]).unwrap();
    let error = contender::check_agreement(&[prepared(256), prepared(512)]).unwrap_err();
    assert!(matches!(error, BenchError::Disagreement { .. }), "{error}");
}

#[test]
fn contenders_have_the_names_of_the_report() {
    for contender in Contender::all() {
        assert_eq!(contender.to_string().parse::<Contender>().unwrap(), contender);
    }
    assert_eq!("auto".parse::<Contender>().unwrap(), Contender::Kernel(KernelChoice::preferred()));
    "gcrypt".parse::<Contender>().unwrap_err();
}
