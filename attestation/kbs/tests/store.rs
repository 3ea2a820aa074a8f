//! The store in a file does what every store must.

mod suite;

use kata_cc_kbs::store::Store;

#[tokio::test]
async fn sqlite_does_what_every_store_must() {
    let dir = tempfile::tempdir().unwrap();
    suite::everything(&Store::sqlite(dir.path()).unwrap()).await;
}
