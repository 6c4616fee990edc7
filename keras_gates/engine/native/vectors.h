// Vectors of as many numbers as the instruction set takes at once, and functions of them.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define FAST static inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

template <class T> struct Of;
template <> struct Of<float> {
  typedef float V __attribute__((vector_size(BYTES)));
  typedef int32_t I __attribute__((vector_size(BYTES)));
};
template <> struct Of<double> {
  typedef double V __attribute__((vector_size(BYTES)));
  typedef int64_t I __attribute__((vector_size(BYTES)));
};
template <class T> constexpr long LANES = BYTES / sizeof(T);

template <class T> FAST typename Of<T>::V load(const T* p) {
  typename Of<T>::V v;
  __builtin_memcpy(&v, p, BYTES);
  return v;
}
template <class T, class V> FAST void store(T* p, V v) { __builtin_memcpy(p, &v, BYTES); }
template <class T> FAST typename Of<T>::V splat(T x) { return x - typename Of<T>::V{}; }
template <class M, class V> FAST V select(M mask, V then, V otherwise) {
  return mask ? then : otherwise;
}

// What a vector holds: T of V.
template <class V> struct Number;
template <> struct Number<Of<float>::V> { typedef float T; };
template <> struct Number<Of<double>::V> { typedef double T; };

template <class V> FAST typename Of<typename Number<V>::T>::I bits(V v) {
  return (typename Of<typename Number<V>::T>::I)v;
}

template <class V> FAST V absolute(V a) { return select(a < 0, -a, a + 0); }

template <class V> FAST V bounded(V x, V low, V high) {  // NaN stays
  return select(x < low, low, select(x > high, high, x));
}

template <class V, class F> FAST V each(V a, F f) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(a[0]); i++) a[i] = f(a[i]);
  return a;
}
template <class V, class F> FAST V each(V a, V b, F f) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(a[0]); i++) a[i] = f(a[i], b[i]);
  return a;
}

// Limits of exp, the bits of a number after the point, and a number whose last bit is a unit.
template <class T> struct Format;
template <> struct Format<float> {
  static constexpr float LOW = -104, HIGH = 88.73f, ROUND = 12582912, LN2 = 0.693359375f,
                         LN2_REST = -2.12194440e-4f, SMALLEST = 1.17549435e-38f;
  static constexpr int BITS = 23, BIAS = 127, MAGNITUDE = 0x7fffffff;
};
template <> struct Format<double> {
  static constexpr double LOW = -746, HIGH = 709.79, ROUND = 6755399441055744,
                          LN2 = 0.693145751953125, LN2_REST = 1.42860682030941723212e-6,
                          SMALLEST = 2.2250738585072014e-308;
  static constexpr int BITS = 52, BIAS = 1023;
  static constexpr int64_t MAGNITUDE = 0x7fffffffffffffff;
};

FAST Of<float>::V exponential_series(Of<float>::V r) {  // (exp(r) - 1 - r) / r^2, |r| < ln(2) / 2
  // Fitted at Chebyshev points; relative error of the whole 6e-10.
  Of<float>::V s = r * 1.9900443820403062e-4f + 1.3934544520072313e-3f;
  s = s * r + 8.3332970638234499e-3f;
  s = s * r + 4.1666456777923258e-2f;
  s = s * r + 1.6666666722230078e-1f;
  return s * r + 5.0000000142910872e-1f;
}
FAST Of<double>::V exponential_series(Of<double>::V r) {
  Of<double>::V s = splat(1 / 6227020800.);  // 1 / 13!
  double factorial = 6227020800.;
  for (int k = 13; k > 2; k--) s = s * r + 1 / (factorial /= k);
  return s;
}

// exp(x) = 2^n (1 + rest), and 2^n as two factors, since it may be no normal number.
template <class V> struct Parts { V rest, first, second; };

template <class V> FAST Parts<V> exponential_parts(V x) {
  typedef typename Number<V>::T T;
  typedef Format<T> F;
  x = bounded(x, splat<T>(F::LOW), splat<T>(F::HIGH));
  const V shifted = x * T(1.4426950408889634) + F::ROUND;
  const V n = shifted - F::ROUND;
  const V r = (x - n * F::LN2) - n * F::LN2_REST;
  const auto whole = bits(shifted) - bits(splat<T>(F::ROUND));
  const auto half = whole >> 1;
  return {r + r * r * exponential_series(r), (V)((half + F::BIAS) << F::BITS),
          (V)((whole - half + F::BIAS) << F::BITS)};
}

template <class V> FAST V exponential(V x) {
  const Parts<V> p = exponential_parts(x);
  return (p.first + p.first * p.rest) * p.second;
}

template <class V> FAST V exponential_minus_1(V x) {
  const Parts<V> p = exponential_parts(x);
  return p.first * p.second * p.rest + (p.first * p.second - 1);
}

template <class V> FAST V hyperbolic_tangent(V x) {
  typedef typename Number<V>::T T;
  // 20 is past where 1 is the nearest number, and exp(40) is one that can be squared.
  const V size = absolute(x);
  const V e = exponential_minus_1(select(size > 20, splat<T>(40), 2 * size));
  const V y = e / (e + 2);
  return select(x < 0, -y, y);
}

template <class V> FAST V logarithm(V x) {
  typedef typename Number<V>::T T;
  typedef Format<T> F;
  const V up = splat<T>(T(1LL << F::BITS) * 4);
  const auto small = x < F::SMALLEST;
  const V normal = select(small, x * up, x);
  // The exponent for which what is left lies between the roots of 1/2 and 2.
  const auto root = bits(splat<T>(T(0.70710678118654752)));
  const auto size = bits(normal) & F::MAGNITUDE;
  const auto exponent = (size - root) >> F::BITS;
  const V m = (V)(size - (exponent << F::BITS));
  V e = (V)(exponent + bits(splat<T>(F::ROUND))) - F::ROUND;
  e = select(small, e - (F::BITS + 2), e);
  const V s = (m - 1) / (m + 1), s2 = s * s;
  V series = splat<T>(T(1. / (sizeof(T) == 4 ? 11 : 25)));  // atanh(s) = s (1 + s^2 / 3 + ...)
  for (int k = sizeof(T) == 4 ? 9 : 23; k > 1; k -= 2) series = series * s2 + T(1. / k);
  const V found = e * F::LN2_REST + (2 * s + 2 * s * s2 * series) + e * F::LN2;
  const V infinity = splat<T>(T(INFINITY));
  const V special = select(x == 0, -infinity, select(x == infinity, x, splat<T>(T(NAN))));
  return select((x > 0) & (x < infinity), found, special);
}

template <class V> FAST V logarithm_of_1_plus(V x) {
  const V u = x + 1, rounding = (x - (u - 1)) / u;
  return logarithm(u) + select(rounding == rounding, rounding, V{});
}

template <class V> FAST typename Number<V>::T added(V v) {
  typename Number<V>::T total = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); i++) total += v[i];
  return total;
}

}  // namespace
