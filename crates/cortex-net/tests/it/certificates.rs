use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cortex_net::{CertificateFiles, Identity, Trust, Validity};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// A certificate of `localhost` in PEM and DER, and its key.
fn made(from: (i32, u8, u8), until: (i32, u8, u8)) -> (String, Vec<u8>, String) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(from.0, from.1, from.2);
    params.not_after = date_time_ymd(until.0, until.1, until.2);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), certificate.der().to_vec(), key.serialize_pem())
}

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let day = (2024, 1, 1);
    let ((certificate, _, key), (_, _, other_key)) = (made(day, (2034, 1, 1)), made(day, (2034, 1, 1)));
    let [certificate, key, other_key] =
        [("cert.pem", certificate), ("key.pem", key), ("other.pem", other_key)].map(|(name, text)| written(folder.path(), name, &text));
    let [nothing, empty] = [folder.path().join("nothing"), written(folder.path(), "empty.pem", "")];
    let cases = [
        (&nothing, &key, "cannot read FOLDER/nothing: No such file or directory"),
        (&certificate, &nothing, "cannot read FOLDER/nothing"),
        (&empty, &key, "FOLDER/empty.pem holds no certificate: it should have a `-----BEGIN CERTIFICATE-----`"),
        (&key, &key, "FOLDER/key.pem holds no certificate"),
        (&certificate, &certificate, "FOLDER/cert.pem holds no private key: it should have a `-----BEGIN PRIVATE KEY-----`"),
        (&certificate, &other_key, "the certificate FOLDER/cert.pem and the key FOLDER/other.pem cannot be used together"),
    ];
    let says = |error: &dyn std::fmt::Display| error.to_string().replace(&folder.path().display().to_string(), "FOLDER");
    for (certificate, key, expected) in cases {
        let files = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
        let error = says(&Identity::read(files).unwrap_err());
        assert!(error.starts_with(expected), "{error}\nshould begin with\n{expected}");
    }
    assert!(says(&Trust::of_file(&empty).unwrap_err()).starts_with("FOLDER/empty.pem holds no certificate"));
}

#[test]
fn new_files_are_taken_and_bad_ones_change_nothing() {
    let folder = TempDir::new().unwrap();
    let write = |(certificate, _, key): &(String, Vec<u8>, String)| CertificateFiles {
        certificate: written(folder.path(), "cert.pem", certificate),
        key: written(folder.path(), "key.pem", key),
    };
    let year = |year: i32| made((year, 1, 1), (year + 1, 1, 1));
    let identity = Identity::read(write(&year(2030))).unwrap();
    let first = identity.validity();
    assert!(first.is_some());
    assert!(!identity.reread().unwrap(), "nothing changed");
    written(folder.path(), "cert.pem", &year(2031).0); // its key is not there yet
    assert!(identity.reread().is_err());
    assert_eq!(identity.validity(), first);
    write(&year(2032));
    assert!(identity.reread().unwrap());
    assert_ne!(identity.validity(), first);
}

#[test]
fn the_dates_of_a_certificate_are_read_in_both_of_their_forms() {
    let day = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
    // Years from 2050 on are written with four digits.
    let cases = [((1999, 12, 31), 10_956, (2049, 12, 31), 29_219), ((2024, 2, 29), 19_782, (2050, 1, 1), 29_220)];
    for (from, from_day, until, until_day) in cases {
        assert_eq!(Validity::of(&made(from, until).1), Some(Validity { from: day(from_day), until: day(until_day) }));
    }
}
