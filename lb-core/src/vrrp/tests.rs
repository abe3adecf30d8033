mod machine;
mod packets;
mod pair;
