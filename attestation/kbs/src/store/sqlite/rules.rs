//! What decisions rest on, in memory while nobody changes it: asking the database thread for the same text over and over takes longer than most
//! decisions.
//!
//! **Invariant:** filled and emptied on the database thread alone, and emptied before whoever made a change is answered. So it is never older than
//! the last change that anybody knows of.

use super::{Db, Sqlite};
use crate::store::{AppraisalInput, PolicyName, Registered, StoreError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was asked for since the last change. Decisions ask for two policies.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    policies: HashMap<PolicyName, Option<Arc<str>>>,
    registered: Option<Arc<Registered>>,
}

impl Rules {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn policy(&self, name: &PolicyName) -> Option<Option<Arc<str>>> {
        self.lock().policies.get(name).cloned()
    }

    fn registered(&self) -> Option<Arc<Registered>> {
        self.lock().registered.clone()
    }

    fn read_policy(&self, db: &Db, name: PolicyName) -> Result<Option<Arc<str>>, StoreError> {
        let policy: Option<Arc<str>> = db.policy(&name)?.map(Arc::from);
        self.lock().policies.insert(name, policy.clone());
        Ok(policy)
    }

    fn read_registered(&self, db: &Db) -> Result<Arc<Registered>, StoreError> {
        let registered = Arc::new(db.registered()?);
        self.lock().registered = Some(Arc::clone(&registered));
        Ok(registered)
    }
}

impl Sqlite {
    /// Runs `work` on the database thread, after which nothing that was known is.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let rules = Arc::clone(&self.rules);
        self.run(move |db| {
            let done = work(db);
            *rules.lock() = Known::default();
            done
        })
        .await
    }

    async fn known_policy(&self, name: PolicyName) -> Result<Option<Arc<str>>, StoreError> {
        if let Some(policy) = self.rules.policy(&name) {
            return Ok(policy);
        }
        let rules = Arc::clone(&self.rules);
        self.run(move |db| rules.read_policy(db, name)).await
    }

    /// See [`crate::store::Store`] for this and the following.
    pub(in crate::store) async fn resource_policy(&self) -> Result<Option<Arc<str>>, StoreError> {
        self.known_policy(PolicyName::Resource).await
    }

    pub(in crate::store) async fn appraisal_input(&self, policy: PolicyName) -> Result<AppraisalInput, StoreError> {
        if let (Some(policy), Some(registered)) = (self.rules.policy(&policy), self.rules.registered()) {
            return Ok(AppraisalInput { policy, registered });
        }
        let rules = Arc::clone(&self.rules);
        // In one go, so that both are of one moment.
        self.run(move |db| Ok(AppraisalInput { policy: rules.read_policy(db, policy)?, registered: rules.read_registered(db)? })).await
    }

    pub(in crate::store) async fn registered(&self) -> Result<Arc<Registered>, StoreError> {
        if let Some(registered) = self.rules.registered() {
            return Ok(registered);
        }
        let rules = Arc::clone(&self.rules);
        self.run(move |db| rules.read_registered(db)).await
    }
}
