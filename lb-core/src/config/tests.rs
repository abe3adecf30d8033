mod mistakes;
mod reading;
