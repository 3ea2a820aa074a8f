//! How the two protobuf wrapper types look in the JSON form of a request (the input of agent policies).
//!
//! An enumeration is its number, also when the number is not one we know: a policy can then refuse it. An absent message is
//! `null`. Both as Kata's agent does it, because existing policies are written against that.

/// `EnumOrUnknown` as its number.
pub(crate) mod enumeration {
    use protobuf::{Enum, EnumOrUnknown};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<E: Enum, S: Serializer>(value: &EnumOrUnknown<E>, serializer: S) -> Result<S::Ok, S::Error> {
        value.value().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, E: Enum, D: Deserializer<'de>>(deserializer: D) -> Result<EnumOrUnknown<E>, D::Error> {
        i32::deserialize(deserializer).map(EnumOrUnknown::from_i32)
    }
}

/// `MessageField` as its message or `null`.
pub(crate) mod message {
    use protobuf::MessageField;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<M: Serialize, S: Serializer>(value: &MessageField<M>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, M: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<MessageField<M>, D::Error> {
        Option::<M>::deserialize(deserializer).map(MessageField::from_option)
    }
}
