mod docs;
mod mistakes;
mod reading;
