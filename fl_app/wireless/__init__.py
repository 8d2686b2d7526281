"""The air interface: fading, power control, aggregation and linear layers over the air. NumPy only.

Conventions that hold in every module of this package:

* One *channel use* is one complex symbol on one subcarrier. Two reals share it as
  c = (s_0 + j s_1) / sqrt(2), so that unit-variance reals make E|c|^2 = 1.
* ``noise_power`` sigma^2 is the variance of the circular noise CN(0, sigma^2) of one channel use at
  one receive antenna; each of its real dimensions has sigma^2 / 2.
* ``power`` P is the mean transmit power of one channel use, not a sum over subcarriers.
* *tx-SNR* is P / sigma^2, before any fading. *Aligned SNR* is the energy of the received sum over
  that of the noise, after the receiver's scaling. With one weak device the two differ by tens of
  decibels; no name and no text here says "SNR" alone.
* Small-scale fading has E|h|^2 = 1; path loss and shadowing are kept apart as ``mean_gains``.
"""
