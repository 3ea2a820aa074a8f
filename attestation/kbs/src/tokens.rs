//! Attestation tokens: issued here, and known again when they come back. A pod reads many resources with one token, and it is verified, and put into
//! the form that policies see, once.
//!
//! **Invariant:** known again is only the very same text, and its time is looked at each time.

use kata_cc_kbs_protocol::{Ear, TeePublicKey, TokenError, TokenSigner, TokenVerifier, VerifiedToken};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Most bytes of tokens that are known. A token has some 6 KiB, and takes several times that in its other forms.
const MAX_KNOWN: usize = 256 * 1024;

/// A token that was verified, and what policies see of it.
#[derive(Debug)]
pub struct Shown {
    ear: Ear,
    policy_input: regorus::Value,
    tee_key: Result<TeePublicKey, TokenError>,
}

impl Shown {
    /// The claims we know, typed. The evidence is in [`Self::policy_input`] alone.
    pub fn ear(&self) -> &Ear {
        &self.ear
    }

    /// Its claims in the form of the policy engine. Cheap to clone.
    pub fn policy_input(&self) -> &regorus::Value {
        &self.policy_input
    }

    /// See [`VerifiedToken::tee_key`].
    ///
    /// # Errors
    /// As there.
    pub fn tee_key(&self) -> Result<&TeePublicKey, &TokenError> {
        self.tee_key.as_ref()
    }
}

impl From<VerifiedToken> for Shown {
    fn from(token: VerifiedToken) -> Self {
        let tee_key = token.tee_key();
        let (claims, mut ear) = token.into_parts();
        // It is most of a token, and would be kept twice.
        ear.submods.values_mut().for_each(|appraisal| appraisal.annotated_evidence = serde_json::Value::Null);
        Self { policy_input: claims.into(), tee_key, ear }
    }
}

/// Issues tokens and knows them again.
pub struct Tokens {
    signer: TokenSigner,
    verifier: TokenVerifier,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_text: HashMap<Arc<str>, Arc<Shown>>,
    /// As they came.
    order: VecDeque<Arc<str>>,
    bytes: usize,
}

impl Known {
    fn insert(&mut self, text: &str, shown: Arc<Shown>) {
        let text: Arc<str> = text.into();
        if self.by_text.insert(Arc::clone(&text), shown).is_some() {
            return;
        }
        self.bytes = self.bytes.saturating_add(text.len());
        self.order.push_back(text);
        while self.bytes > MAX_KNOWN {
            let Some(oldest) = self.order.pop_front() else { break };
            self.by_text.remove(&oldest);
            self.bytes = self.bytes.saturating_sub(oldest.len());
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("signer", &self.signer).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Trusts the tokens of this signer and no others.
    ///
    /// # Errors
    /// When the signer's key is no P-256 key.
    pub fn of(signer: TokenSigner) -> Result<Self, TokenError> {
        let verifier = TokenVerifier::new([&signer.public_jwk()])?;
        Ok(Self { signer, verifier, known: Mutex::default() })
    }

    /// Whose tokens they are.
    pub fn signer(&self) -> &TokenSigner {
        &self.signer
    }

    /// Issues a token, which will be known.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn issue(&self, ear: Ear) -> Result<String, TokenError> {
        let (text, token) = self.signer.issue(ear)?;
        self.remember(&text, token);
        Ok(text)
    }

    /// The token with this text, if it is one of ours and in its time.
    ///
    /// # Errors
    /// As [`TokenVerifier::verify`].
    pub fn verify(&self, text: &str, now: u64) -> Result<Arc<Shown>, TokenError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).by_text.get(text).cloned();
        match known {
            Some(shown) => shown.ear.check_time(now).map(|()| shown),
            None => Ok(self.remember(text, self.verifier.verify(text, now)?)),
        }
    }

    fn remember(&self, text: &str, token: VerifiedToken) -> Arc<Shown> {
        let shown = Arc::new(Shown::from(token));
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(text, Arc::clone(&shown));
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_kbs_protocol::ear::{EAT_PROFILE, VerifierId};

    const NOW: u64 = 1_800_000_000;

    fn ear(iss: &str) -> Ear {
        Ear {
            eat_profile: EAT_PROFILE.into(),
            iat: NOW,
            exp: NOW + 300,
            iss: iss.into(),
            verifier_id: VerifierId { developer: "kata-cc".into(), build: "test".into() },
            submods: [].into(),
        }
    }

    fn known(tokens: &Tokens) -> usize {
        tokens.known.lock().unwrap().by_text.len()
    }

    #[test]
    fn a_token_is_known_by_its_very_text_and_in_its_time() {
        let tokens = Tokens::of(TokenSigner::generate().unwrap()).unwrap();
        let text = tokens.issue(ear("a")).unwrap();
        let shown = tokens.verify(&text, NOW).unwrap();
        assert!(Arc::ptr_eq(&shown, &tokens.verify(&text, NOW + 299).unwrap()));
        assert!(matches!(tokens.verify(&text, NOW + 300), Err(TokenError::Expired { .. })));
        assert!(matches!(tokens.verify(&text, NOW - 61), Err(TokenError::NotYetValid { .. })));
        // What is known says the same as what is verified.
        let verified = tokens.verifier.verify(&text, NOW).unwrap();
        assert_eq!((shown.policy_input(), shown.ear()), (&regorus::Value::from(verified.claims().clone()), verified.ear()));
        assert_eq!(shown.policy_input()["iss"], regorus::Value::from("a"));
        for changed in [format!("{text}A"), text.replacen('.', "..", 1), text[..text.len() - 1].to_owned()] {
            assert!(tokens.verify(&changed, NOW).is_err());
        }
        let stranger = Tokens::of(TokenSigner::generate().unwrap()).unwrap().issue(ear("a")).unwrap();
        assert_eq!(tokens.verify(&stranger, NOW).map(drop), Err(TokenError::Signature));
        assert_eq!(known(&tokens), 1, "what was refused is not known");
    }

    #[test]
    fn tokens_issued_before_a_start_are_verified_and_then_known() {
        let scalar = TokenSigner::generate().unwrap().to_bytes();
        let start = || Tokens::of(TokenSigner::from_bytes(scalar.as_slice()).unwrap()).unwrap();
        let text = start().issue(ear("a")).unwrap();
        let again = start();
        let first = again.verify(&text, NOW).unwrap();
        assert!(Arc::ptr_eq(&first, &again.verify(&text, NOW).unwrap()));
    }

    #[test]
    fn the_oldest_are_forgotten_and_verified_anew() {
        let tokens = Tokens::of(TokenSigner::generate().unwrap()).unwrap();
        let long = "x".repeat(15 * 1024);
        let texts: Vec<String> = (0..16).map(|i| tokens.issue(ear(&format!("{i}{long}"))).unwrap()).collect();
        let fit = MAX_KNOWN / texts[0].len();
        assert!(fit < texts.len());
        assert_eq!(known(&tokens), fit);
        assert!(tokens.verify(&texts[0], NOW).is_ok());
        assert_eq!(known(&tokens), fit);
    }
}
